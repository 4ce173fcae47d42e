"""URLs: hostile ones, none of which may be let through, and odd but legal ones, which all must.

``{port}`` stands for the port at which a canary listens on loopback; without it, the port is one
that may be reached. Names are answered by a name server that says loopback to everything.
"""

from __future__ import annotations

#: Ways to write 127.0.0.1, ::1, or what some parser takes for them.
LOOPBACK_HOSTS = (
    # plain, and the whole network
    "127.0.0.1", "127.0.0.3", "127.1.2.3", "127.255.255.254", "0.0.0.0", "0.0.0.1",
    # one number: decimal, octal, hexadecimal, overlong, wrapped around 2^32
    "2130706433", "02130706433", "017700000001", "0017700000001", "00000017700000001", "0x7f000001",
    "0X7F000001", "0x7F000001", "0x07f000001", "0x0000007f000001", "0x17f000001", "6425673729",
    "4294967296", "0", "00", "0x0", "0x",
    # parts left out
    "127.1", "127.0.1", "127.65530", "127.0.65535", "0.0", "0.0.0", "0x7f.1", "0177.1",
    # parts of several kinds
    "0177.0.0.1", "0177.0.0.01", "00177.0.0.1", "0177.00.00.01", "0x7f.0.0.1", "0x7f.0x0.0x0.0x1",
    "0X7F.0.0.1", "127.0.0.0x1", "127.0x0.0.1", "127.00.0.1", "127.000.000.001", "127.0.0.01",
    "127.0.0.001", "0x7f.0.1", "127.0x1", "0x7f.0000001", "0177.0x0.0.1", "127.0.00000.1",
    # a root's dot behind, dots too many
    "127.0.0.1.", "127.1.", "2130706433.", "0x7f000001.", "127.0.0.1..", ".127.0.0.1", "127..0.0.1",
    "127.0.0..1", "127.0.0.1.0", "127.0.0", "1.127.0.0.1",
    # no number of any base, to the strict; atoi reads them
    "127.0.0.1a", "127.0.0.08", "0x7g000001.0x1", "127.0.0.1e0", "256.0.0.1", "383.0.0.1",
    "127.0.0.257", "-127.0.0.1", "+127.0.0.1", "127.-0.0.1", "127,0,0,1", "127_0_0_1.0x1",
    # full-width, circled, superscript and other digits; other dots
    "１２７.0.0.1", "１２７．０．０．１", "①②⑦.⓪.⓪.①", "¹²⁷.0.0.1", "127。0。0。1", "127．0．0．1",
    "127｡0｡0｡1", "٠١٢٧.0.0.1", "१२७.0.0.1", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "𝟙𝟚𝟟.𝟘.𝟘.𝟙", "⑴⑵⑺.0.0.1", "０x7f000001",
    "0ⅹ7f000001", "ⅼocalhost.0", "127.0.0.１",
    # percent-encoded
    "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "127.0.0.1%2f", "127.0.0.%31", "%6c%6f%63alhost",
    "127.0.0.1%00", "127.0.0.1%00.example.com", "127.0.0.1%09", "127.0.0.1%20", "%2f127.0.0.1",
    "127.0.0.1%23.example.com", "127.0.0.1%3f.example.com", "127.0.0.1%5c.example.com",
    "%u0031%u0032%u0037.0.0.1", "127%E3%80%820.0.1", "localhost%2eexample.com",
    # IPv6, in every spelling, with zone ids, and what is no IPv6
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[0::1]", "[::0:1]",
    "[::]", "[0:0::0:0]", "[::1%25lo]", "[::1%lo]", "[::1%251]", "[::1%1]", "[::1%]", "[::1%25]",
    "[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1]]", "[[::1]]", "[::1", "::1", "[::1].", "[::1]a",
    "[127.0.0.1]", "[localhost]", "[v1.127]", "[v6.::1]", "[]", "[:]", "[::1:]", "[1::2::3]",
    "[::ffff:127.0.0.1", "[::١]", "[：：１]",
    # IPv6 that carries IPv4
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:127.0.0.1]", "[0:0:0:0:0:ffff:127.0.0.1]",
    "[0:0:0:0:0:ffff:7f00:0001]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::127.0.0.1]", "[2002:7f00:1::]",
    "[2002:7f00:1::1]", "[2001:0:7f00:1::]", "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[::ffff:0x7f.1]", "[::ffff:127.1]", "[::ffff:0177.0.0.1]",
)  # fmt: skip

#: Other addresses that are no public image's, as hosts.
SPECIAL_HOSTS = (
    # private, shared, link-local
    "10.0.0.0", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.255.255", "100.64.0.1", "100.127.255.255", "169.254.0.1", "169.254.255.255",
    "167772161", "0x0a000001", "012.0.0.1", "10.1", "172.16.1", "192.168.1", "192.168.257",
    "0xc0a80001", "3232235521", "0300.0250.0.1",
    # cloud metadata: most clouds, Alibaba, Azure, Oracle, AWS by IPv6 and its other services
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
    "0xa9.0xfe.0xa9.0xfe", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]", "100.100.100.200", "168.63.129.16", "192.0.0.192", "[fd00:ec2::254]",
    "[fd00:ec2::253]", "[fd20:ce::254]", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]",
    # documentation, benchmarking, relays, multicast, reserved, broadcast
    "192.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255",
    "192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.254", "255.255.255.255", "4294967295", "0xffffffff",
    # IPv6: unique local, link-local, site-local, multicast, documentation, discard, and the rest
    "[fc00::1]", "[fd12:3456:789a::1]", "[fe80::1]", "[febf::1]", "[fec0::1]", "[ff02::1]",
    "[ff05::2]", "[ff0e::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[2001::1]", "[2001:2::1]",
    "[2001:10::1]", "[2001:20::1]", "[2620:4f:8000::1]", "[5f00::1]", "[4000::1]", "[e000::1]",
    "[64:ff9b::1.1.1.1]", "[::ffff:1.1.1.1]", "[::1.1.1.1]", "[2002:101:101::1]",
)  # fmt: skip

#: Whole URLs whose parsers do not agree on what they name.
CONFUSING_URLS = (
    # user names and passwords
    "http://example.com@127.0.0.1:{port}/", "http://user:password@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/", "http://@127.0.0.1:{port}/",
    "http://:@127.0.0.1:{port}/", "http://a@b@127.0.0.1:{port}/", "http://user@example.com:{port}/",
    "http://127.0.0.1:{port}@example.com/", "http://127.0.0.1:{port}:80@example.com:{port}/",
    "http://example.com%40127.0.0.1:{port}/", "http://example.com%3a80@127.0.0.1:{port}/",
    "http://foo@127.0.0.1:{port}@example.com/", "http://127.1.1.1:{port}\\@127.0.0.1:{port}/",
    "http://example.com;@127.0.0.1:{port}/", "http://example.com,127.0.0.1:{port}/",
    "http://@@127.0.0.1:{port}/", "http://example.com﹫127.0.0.1:{port}/",
    "http://example.com＠127.0.0.1:{port}/", "http://[::1]@example.com:{port}/",
    "http://example.com@[::1]:{port}/", "http://user@[::ffff:127.0.0.1]:{port}/",
    # slashes, backslashes, and too few or many of them
    "http:\\\\127.0.0.1:{port}\\", "http:/\\127.0.0.1:{port}/", "http:\\/127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\.example.com/", "http://example.com\\@127.0.0.1:{port}/",
    "http://\\127.0.0.1:{port}/", "http://127.0.0.1\\:{port}/", "http:///127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/", "http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/",
    "//127.0.0.1:{port}/", "/127.0.0.1:{port}/", "127.0.0.1:{port}/", "127.0.0.1:{port}",
    "http:://127.0.0.1:{port}/", "http//127.0.0.1:{port}/", "://127.0.0.1:{port}/",
    "http://／127.0.0.1:{port}/", "http:／／127.0.0.1:{port}/", "http://127.0.0.1:{port}／",
    "http://example.com／@127.0.0.1:{port}/", "http://example.com⁄@127.0.0.1:{port}/",
    # blanks, tabs, line ends, NUL, and what cannot be seen
    " http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/ ", "http:// 127.0.0.1:{port}/",
    "http://127.0.0.1 :{port}/", "http://127.0.0.1: {port}/", "http://127.0.0.1:{port} /",
    "\thttp://127.0.0.1:{port}/", "ht\ttp://127.0.0.1:{port}/", "http://127.\t0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/", "http://127.0.0.1:\t{port}/", "http://\t127.0.0.1:{port}/",
    "\nhttp://127.0.0.1:{port}/", "http://127.0.0.1:{port}\n/", "http://127.0.0.1\r\n:{port}/",
    "http://example.com\n@127.0.0.1:{port}/", "http://127.0.0.1:{port}/\r\nHost: example.com",
    "http://example.com:{port}/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "\x00http://127.0.0.1:{port}/", "http://127.0.0.1\x00.example.com:{port}/",
    "http://127.0.0.1:{port}/\x00", "http://127.0.0.1\x0b:{port}/", "http://127.0.0.1\x1f:{port}/",
    "http://127.0.0.1\x7f:{port}/", "http://127.0.0.1\xa0:{port}/", "http://127.0.0.1\xad:{port}/",
    "http://127.0.0.1\u200b:{port}/", "http://127.0.0.1\u2028:{port}/",
    "http://\u202e127.0.0.1:{port}/", "http://127.0.0.1\ufeff:{port}/",
    "\ufeffhttp://127.0.0.1:{port}/", "http://127.0.0.1\u2060:{port}/",
    "http://127.0.0.1\u3000:{port}/", "http://127.0.0.1\ud800:{port}/",
    "http://127.0.0.1\U000e0041:{port}/",
    # other schemes, and what folds to http
    "file:///etc/passwd", "file://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET%20/", "dict://127.0.0.1:{port}/", "ldap://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/", "wss://127.0.0.1:{port}/", "jar:http://127.0.0.1:{port}/!/",
    "data:image/png;base64,AAAA", "javascript:fetch('http://127.0.0.1:{port}/')",
    "blob:http://127.0.0.1/", "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "view-source:http://127.0.0.1/",
    "url:http://127.0.0.1:{port}/", "httpſ://127.0.0.1:{port}/", "ｈｔｔｐ://127.0.0.1:{port}/",
    "hTTp://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}/", "https://127.0.0.1:{port}/",
    # ports
    "http://127.0.0.1:+{port}/", "http://127.0.0.1:0{port}/", "http://127.0.0.1:-{port}/",
    "http://127.0.0.1:{port}:80/", "http://127.0.0.1:80:{port}/", "http://127.0.0.1:{port}a/",
    "http://127.0.0.1:０{port}/", "http://127.0.0.1:%38%30/", "http://127.0.0.1:/",
    "http://127.0.0.1", "http://127.0.0.1:1_0/", "http://127.0.0.1:65536/",
    "http://127.0.0.1:99999999999999999999/", "http://example.com:22/", "http://example.com:25/",
    "http://example.com:6379/", "http://example.com:9092/", "http://example.com:0/",
    # the end of the host
    "http://127.0.0.1:{port}?example.com/", "http://127.0.0.1:{port}#example.com/",
    "http://127.0.0.1:{port}#@example.com/", "http://127.0.0.1:{port}?@example.com/",
    "http://127.0.0.1:{port}/@example.com", "http://127.0.0.1:{port};example.com/",
    "http://127.0.0.1&example.com:{port}/", "http://example.com|127.0.0.1:{port}/",
    "http://{{127.0.0.1}}:{port}/", "http://127.0.0.1*.example.com:{port}/", "http://*:{port}/",
    "http://$(127.0.0.1):{port}/", "http://`127.0.0.1`:{port}/", "http://'127.0.0.1':{port}/",
    'http://"127.0.0.1":{port}/', "http://<127.0.0.1>:{port}/", "http://127.0.0.1^:{port}/",
    "http://:{port}/", "http://", "http:", "http://?", "http://#", "http://./", "http://../", "",
    # names, all of which have a loopback address
    "http://localhost:{port}/", "http://LOCALHOST:{port}/", "http://localhost.:{port}/",
    "http://localhost.localdomain:{port}/", "http://ip6-localhost:{port}/",
    "http://a.localhost:{port}/", "http://hostile.example:{port}/",
    "http://hostile.example.:{port}/", "http://HOSTILE.example:{port}/",
    "http://127.0.0.1.nip.example:{port}/", "http://127-0-0-1.sslip.example:{port}/",
    "http://7f000001.example:{port}/", "http://metadata.google.internal:{port}/",
    "http://kubernetes:{port}/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/", "http://ｌｏｃａｌｈｏｓｔ:{port}/",
    "http://loc\u0430lhost:{port}/", "http://localho\u017ft:{port}/",
    "http://xn--lcalhost-f1g:{port}/", "http://lócalhost:{port}/", "http://ℓocalhost:{port}/",
    "http://host%69le.example:{port}/", "http://-hostile.example:{port}/",
    "http://hostile..example:{port}/", "http://.hostile.example:{port}/",
    "http://hostile_.example:{port}/", "http://xn--a:{port}/", "http://xn--:{port}/",
    "http://_:{port}/", "http://a_b.example:{port}/",
    # host header and request tricks in path and query
    "http://127.0.0.1:{port}/..//..//", "http://127.0.0.1:{port}/%0d%0aHost:%20example.com",
    "http://127.0.0.1:{port}/?url=http://example.com/",
    "http://127.0.0.1:{port}/http://example.com/",
)  # fmt: skip

#: All of them, each once.
HOSTILE_URLS = tuple(
    dict.fromkeys(
        [f"http://{host}:{{port}}/" for host in (*LOOPBACK_HOSTS, *SPECIAL_HOSTS)]
        + [*CONFUSING_URLS]
    )
)

#: Locations of redirects, which are read against the URL that they come from.
HOSTILE_LOCATIONS = (
    "//127.0.0.1:{port}/", "//localhost:{port}/", "//2130706433:{port}/", "//0x7f.1:{port}/",
    "//[::1]:{port}/", "//[::ffff:127.0.0.1]:{port}/", "//user@127.0.0.1:{port}/",
    "//user:password@127.0.0.1:{port}/", "///127.0.0.1:{port}/../../", "////127.0.0.1:{port}/",
    "/\\127.0.0.1:{port}/", "\\\\127.0.0.1:{port}/", "\\/127.0.0.1:{port}/",
    "//127.0.0.1:{port}\\@x/", "//127.0.0.1:{port}", "//127.0.0.1.:{port}/", "//127.0.0.1:{port}?",
    "//127.0.0.1:{port}#", "HTTP://127.0.0.1:{port}/", "https://127.0.0.1:{port}/",
    "file:///etc/passwd", "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/",
    "data:image/png;base64,AAAA", "javascript:1", "//169.254.169.254/", "//10.0.0.1/",
    "//[fd00:ec2::254]/", "//example.com:22/", "http:127.0.0.1:{port}", "http:///127.0.0.1:{port}/",
    "http://[", "//[", "//[::1", "//:{port}/", "//%31%32%37.0.0.1:{port}/", "//127%2e0.0.1:{port}/",
    "//１２７.0.0.1:{port}/", "//hostile.example:{port}/", "//127.0.0.1:{port}/%0d%0aX:y",
    "http://127.0.0.1:{port}/ ", "\t//127.0.0.1:{port}/",
)  # fmt: skip

#: Odd but legal, or at least usual: all of them are let through. They are as they are, without
#: ``{port}``.
LEGAL_URLS = (
    # the authority
    "http://example.com", "http://example.com/", "HTTP://EXAMPLE.COM/", "hTtP://eXaMpLe.CoM/a.JPG",
    "http://example.com:80/", "http://example.com:/", "http://example.com:080/",
    "http://example.com:00080/", "http://example.com./", "http://example.com.:80/a.jpg",
    "http://example.com?a=b", "http://example.com#a", "http://example.com?", "http://example.com/#",
    "http://example.com:80?a", "http://a/", "http://x.y/", "http://a.b.c.d.e.f.g.example/",
    "http://1.example/", "http://123.com/", "http://1.2.3.4.example/", "http://0x7f.example/",
    "http://127.0.0.1.example/", "http://3com.example/", "http://a--b.example/",
    "http://r3---sn-4g5e6nsz.example/", "http://a_b.s3.example/", "http://_dmarc.example/",
    "http://a_.b.example/", "http://xn--bcher-kva.example/", "http://XN--BCHER-KVA.example/",
    "http://xn--n3h.example/", "http://bücher.example/", "http://BÜCHER.example/", "http://例え.テスト/",
    "http://пример.испытание/", "http://εxample.example/", "http://faß.example/",
    "http://مثال.example/", "http://bücher。example/", "http://" + "a" * 63 + ".example/",
    "http://" + "a." * 100 + "example/", "http://e.xn--p1ai/", "http://93.184.215.14/",
    "http://93.184.215.14:80/a.jpg", "http://93.184.215.14./", "http://1.1.1.1/",
    "http://[2606:4700::6810:84e5]/", "http://[2606:4700:0:0:0:0:6810:84E5]:80/",
    "http://[2606:4700::104.16.132.229]/", "http://172.15.255.255/", "http://172.32.0.1/",
    "http://100.63.255.255/", "http://100.128.0.1/", "http://169.253.1.1/", "http://192.167.1.1/",
    "http://198.17.255.255/", "http://223.255.255.255/", "https://example.com/",
    "https://example.com:443/a", "https://example.com:80/", "http://example.com:443/",
    # the path
    "http://example.com//", "http://example.com//a//b.jpg", "http://example.com/a/../b.jpg",
    "http://example.com/./a", "http://example.com/../../a", "http://example.com/a/..",
    "http://example.com/...", "http://example.com/a;v=1/b,2",
    "http://example.com/a:b@c!d$e&f'g(h)i*j+k,l;m=n", "http://example.com/~user/a-b_c.d",
    "http://example.com/%20a%2Fb%2e", "http://example.com/%e4%bD%a0", "http://example.com/你好.jpg",
    "http://example.com/ü/é.jpg", "http://example.com/😀.png", "http://example.com/100%.jpg",
    "http://example.com/%zz", "http://example.com/%00", "http://example.com/a%0d%0ab",
    "http://example.com/a|b", 'http://example.com/a"b', "http://example.com/a<b>c",
    "http://example.com/a{b}c", "http://example.com/a[1].jpg", "http://example.com/a^b`c",
    "http://example.com/@scope/pkg", "http://example.com/a@b.jpg",
    "http://example.com/http://other.example/a.jpg",
    "http://example.com/https%3A%2F%2Fother.example%2Fa.jpg",
    "http://example.com/w_100,h_200/f:jpeg/a", "http://example.com/-/-",
    "http://example.com/" + "a" * 4000,
    # the query and the fragment
    "http://example.com/?", "http://example.com/??", "http://example.com/?a=b&c=d;e",
    "http://example.com/?a=b=c&&&d", "http://example.com/?url=http://127.0.0.1/",
    "http://example.com/?u=user:password@127.0.0.1", "http://example.com/?a/b?c:d@e",
    "http://example.com/?X-Amz-Signature=abc%2Fdef%2B%3D&X-Amz-Date=20240101T000000Z",
    "http://example.com/?a[0]=1&a[1]=2", "http://example.com/?q=ü+é",
    "http://example.com/?q=%FF%FE", "http://example.com/?q='\"<>", "http://example.com/?{}",
    "http://example.com/a#b#c", "http://example.com/#@127.0.0.1/", "http://example.com/#:80",
    "http://example.com/?#", "http://example.com/?" + "a" * 4000,
)  # fmt: skip
