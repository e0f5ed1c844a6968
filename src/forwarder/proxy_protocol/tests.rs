use proptest::prelude::*;

use super::*;

fn ends(source: &str, destination: &str) -> Ends {
    Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

#[test]
fn headers_are_byte_for_byte_what_the_protocol_says() {
    let four = ends("192.0.2.1:40000", "198.51.100.2:35012");
    assert_eq!(four.v1(), b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 35012\r\n");
    assert_eq!(
        four.v2(Transport::Tcp),
        [V2_START.as_slice(), &[0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 0x88, 0xc4],].concat()
    );
    assert_eq!(four.v2(Transport::Udp)[13], 0x12);

    let six = ends("[2001:db8::1]:1", "[2001:db8::2]:65535");
    assert_eq!(six.v1(), b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n");
    assert_eq!((six.v2(Transport::Tcp)[13], six.v2(Transport::Tcp).len()), (0x21, 16 + 36));
}

#[test]
fn a_client_behind_a_dual_stack_socket_is_an_ipv4_client() {
    let mapped = ends("[::ffff:192.0.2.1]:40000", "[::ffff:198.51.100.2]:35012");
    assert_eq!(mapped.v1(), b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 35012\r\n");
    let mixed = ends("192.0.2.1:1", "[2001:db8::2]:2");
    assert_eq!(mixed.v1(), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
}

#[test]
fn text_headers_are_read_and_bad_ones_are_not() {
    fn check(line: &str, expected: Parsed) {
        assert_eq!(parse(line.as_bytes(), Transport::Tcp), expected, "{line:?}");
    }
    let header = Header::Proxied(ends("192.0.2.1:40000", "198.51.100.2:443"));
    check("PROXY TCP4 192.0.2.1 198.51.100.2 40000 443\r\nGET /", Parsed::Whole(header, 45));
    check("PROXY UNKNOWN\r\n", Parsed::Whole(Header::Own, 15));
    check("PROXY UNKNOWN ff:ff 1 2\r\n", Parsed::Whole(Header::Own, 25));
    check("PROXY TCP4 192.0.2.1 198.51.100.2 40000 443", Parsed::Incomplete);
    check("PRO", Parsed::Incomplete);
    check("", Parsed::Incomplete);
    for bad in [
        "GET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 40000\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 40000 443 1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 40000 65536\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
    ] {
        check(bad, Parsed::Bad);
    }
    check(&format!("PROXY TCP4 {}", "1".repeat(MAX_V1_BYTES)), Parsed::Bad);
}

#[test]
fn binary_headers_are_read_and_bad_ones_are_not() {
    let ends = ends("[2001:db8::1]:40000", "[2001:db8::2]:443");
    let header = ends.v2(Transport::Tcp);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: Parsed| {
        let mut bytes = header.clone();
        change(&mut bytes);
        assert_eq!(parse(&bytes, Transport::Tcp), expected, "{bytes:?}");
    };
    check(&|_| {}, Parsed::Whole(Header::Proxied(ends), 52));
    check(&|bytes| bytes.extend(b"data"), Parsed::Whole(Header::Proxied(ends), 52));
    check(&|bytes| bytes.truncate(51), Parsed::Incomplete);
    check(&|bytes| bytes.truncate(15), Parsed::Incomplete);
    check(&|bytes| bytes[12] = V2_LOCAL, Parsed::Whole(Header::Own, 52));
    check(&|bytes| bytes[13] = 0, Parsed::Whole(Header::Own, 52));
    check(&|bytes| bytes[12] = 0x31, Parsed::Bad);
    check(&|bytes| bytes[12] = 0x22, Parsed::Bad);
    check(&|bytes| bytes[13] = 0x22, Parsed::Bad);
    check(&|bytes| bytes[13] = 0x31, Parsed::Bad);
    check(&|bytes| bytes[15] = 35, Parsed::Bad);
    check(&|bytes| bytes[14] = 0xff, Parsed::Bad);
    // Three optional bytes behind the addresses.
    check(
        &|bytes| {
            bytes[15] += 3;
            bytes.extend([4, 0, 0]);
        },
        Parsed::Whole(Header::Proxied(ends), 55),
    );
    assert_eq!(parse(&header, Transport::Udp), Parsed::Bad);
    assert_eq!(parse(&ends.v1(), Transport::Udp), Parsed::Bad);
    assert_eq!(parse(&ends.v2(Transport::Udp), Transport::Udp), Parsed::Whole(Header::Proxied(ends), 52));
}

fn any_end(v4: bool) -> BoxedStrategy<SocketAddr> {
    if v4 {
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from).boxed()
    } else {
        // Mapped addresses are read as what they are: this is about the rest.
        let address = any::<[u8; 16]>().prop_filter("mapped", |octets| octets[..10] != [0; 10]);
        (address, any::<u16>()).prop_map(SocketAddr::from).boxed()
    }
}

fn any_ends() -> impl Strategy<Value = Ends> {
    any::<bool>()
        .prop_flat_map(|v4| (any_end(v4), any_end(v4)).prop_map(|(source, destination)| Ends { source, destination }))
}

proptest! {
    #[test]
    fn what_is_built_is_read_back_whatever_follows_and_however_it_is_cut(
        ends in any_ends(), more in any::<Vec<u8>>(), cut in any::<prop::sample::Index>()
    ) {
        for (header, transport) in [
            (ends.v1(), Transport::Tcp),
            (ends.v2(Transport::Tcp), Transport::Tcp),
            (ends.v2(Transport::Udp), Transport::Udp),
        ] {
            let whole = Parsed::Whole(Header::Proxied(ends), header.len());
            prop_assert_eq!(parse(&[header.as_slice(), &more].concat(), transport), whole);
            prop_assert_eq!(parse(&header[..cut.index(header.len())], transport), Parsed::Incomplete);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_read_past_the_limit(
        start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", V2_START]),
        bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_HEADER_BYTES)
    ) {
        let bytes = [start, &bytes].concat();
        for transport in [Transport::Tcp, Transport::Udp] {
            match parse(&bytes, transport) {
                Parsed::Whole(_, length) => prop_assert!(length <= MAX_HEADER_BYTES.min(bytes.len())),
                Parsed::Incomplete => prop_assert!(bytes.len() < MAX_HEADER_BYTES),
                Parsed::Bad => {}
            }
        }
    }
}
