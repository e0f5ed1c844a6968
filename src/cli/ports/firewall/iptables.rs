//! Rules for iptables: a chain of Harbor's own, in one file for both families.

use std::{fmt::Write as _, ops::RangeInclusive};

use super::rules::Rules;

/// Most ports that one match takes; a range counts as two.
const MULTIPORT: usize = 15;

/// All rules as a file for `iptables-restore --noflush`, and for `ip6tables-restore --noflush` likewise: each passes over what
/// is the other's. Naming the chain empties it; the jump to it is no part of it, as a file can only add one more.
pub fn text(rules: &Rules) -> String {
    let mut text = format!(
        "# {}\n\
         # Load it by `iptables-restore --noflush FILE` and `ip6tables-restore --noflush FILE`, as often as you like: it fills\n\
         # the chain HARBOR anew and changes nothing else. After the first time, let INPUT jump there:\n\
         #   iptables -C INPUT -j HARBOR || iptables -I INPUT -j HARBOR\n\
         #   ip6tables -C INPUT -j HARBOR || ip6tables -I INPUT -j HARBOR\n\
         *filter\n\
         :HARBOR - [0:0]\n",
        rules.purpose()
    );
    let interface = rules.interface.as_ref().map(|name| format!(" -i {name}")).unwrap_or_default();
    for rule in &rules.rules {
        for ports in matches(rule.ports.ranges()) {
            let mut append = |from: &str| {
                let _ = writeln!(
                    text,
                    "-A HARBOR{from}{interface} -p {} -m multiport --dports {ports} -j ACCEPT",
                    rule.transport
                );
            };
            for network in &rule.from {
                let family = if network.addr().is_ipv6() { "-6" } else { "-4" };
                append(&format!(" {family} -s {network}"));
            }
            if rule.from.is_empty() {
                append("");
            }
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// The ports in as many lists as it takes.
fn matches(ranges: &[RangeInclusive<u16>]) -> Vec<String> {
    let mut lists = Vec::new();
    let (mut list, mut room) = (Vec::new(), MULTIPORT);
    for range in ranges {
        let (size, shown) = match (range.start(), range.end()) {
            (first, last) if first == last => (1, first.to_string()),
            (first, last) => (2, format!("{first}:{last}")),
        };
        if size > room {
            lists.push(std::mem::take(&mut list).join(","));
            room = MULTIPORT;
        }
        room -= size;
        list.push(shown);
    }
    if !list.is_empty() {
        lists.push(list.join(","));
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::{super::rules::tests::rules, *};

    #[test]
    fn a_rule_has_its_ports_and_a_network() {
        let shown = text(&rules(true, None));
        let expected = "\
*filter
:HARBOR - [0:0]
-A HARBOR -p tcp -m multiport --dports 35000:35002,35020 -j ACCEPT
-A HARBOR -p udp -m multiport --dports 35001 -j ACCEPT
-A HARBOR -4 -s 10.0.0.0/8 -p udp -m multiport --dports 50000 -j ACCEPT
-A HARBOR -6 -s fd00::/8 -p udp -m multiport --dports 50000 -j ACCEPT
-A HARBOR -4 -s 192.0.2.7/32 -p tcp -m multiport --dports 50001 -j ACCEPT
COMMIT
";
        assert!(shown.ends_with(expected), "{shown}");
        let first = "-A HARBOR -i eth0 -p tcp -m multiport --dports 35000:35009,35020,50000:50009 -j ACCEPT\n";
        assert!(text(&rules(false, Some("eth0"))).contains(first));
    }

    #[test]
    fn a_match_has_no_more_ports_than_it_takes() {
        let single = (0..16).map(|number| 2000 + 2 * number..=2000 + 2 * number).collect::<Vec<_>>();
        let lists = matches(&single);
        assert_eq!((lists.len(), lists[0].split(',').count(), &*lists[1]), (2, 15, "2030"));
        let runs = (0..8).map(|number| 2000 + 3 * number..=2001 + 3 * number).collect::<Vec<_>>();
        let lists = matches(&runs);
        assert_eq!((lists.len(), lists[0].split(',').count(), &*lists[1]), (2, 7, "2021:2022"));
        assert_eq!(matches(&[]), Vec::<String>::new());
    }
}
