"""Others at the same work beside the service: each in an environment of its own.

All embed the same distinct JPEGs with a ViT-B-32 of the same random weights, on the CPU. Those that
take URLs get them over HTTP from the same image server, the others as files.
"""
