//! Rules for nftables: a table of Harbor's own.

use std::fmt::Write as _;

use super::rules::Rules;
use crate::{cli::ports::shown, model::Transport};

/// All rules as a file for `nft -f`.
pub fn text(rules: &Rules) -> String {
    let mut text = format!(
        "#!/usr/sbin/nft -f\n\
         # {}\n\
         # Load it by `nft -f FILE`, as often as you like: it replaces its own table and nothing else. A packet has to pass\n\
         # the tables of others, too: where one drops what it does not know, put the rules of `clients` into its input chain.\n\
         table inet harbor\n\
         delete table inet harbor\n\
         table inet harbor {{\n",
        rules.purpose()
    );
    let open =
        |transport: Transport| rules.rules.iter().find(move |rule| rule.from.is_empty() && rule.transport == transport);
    for transport in Transport::ALL {
        let elements = open(transport).map(|rule| rule.ports.ranges().iter().map(shown).collect::<Vec<_>>().join(", "));
        let elements = elements.map(|ports| format!("        elements = {{ {ports} }}\n")).unwrap_or_default();
        let _ = write!(
            text,
            "    set {transport}_ports {{\n        type inet_service\n        flags interval\n{elements}    }}\n\n"
        );
    }
    text.push_str("    chain clients {\n");
    let interface = rules.interface.as_ref().map(|name| format!("iifname \"{name}\" ")).unwrap_or_default();
    for transport in Transport::ALL {
        let _ = writeln!(text, "        {interface}{transport} dport @{transport}_ports accept");
    }
    for rule in rules.rules.iter().filter(|rule| !rule.from.is_empty()) {
        let (transport, ports) = (rule.transport, rule.ports.ranges().iter().map(shown).collect::<Vec<_>>().join(", "));
        for (family, is_of) in [("ip", false), ("ip6", true)] {
            let from = rule.from.iter().filter(|network| network.addr().is_ipv6() == is_of).map(ToString::to_string);
            let from = from.collect::<Vec<_>>().join(", ");
            if !from.is_empty() {
                let _ = writeln!(
                    text,
                    "        {interface}{family} saddr {{ {from} }} {transport} dport {{ {ports} }} accept"
                );
            }
        }
    }
    text.push_str(
        "    }\n\n    chain input {\n        type filter hook input priority filter; policy accept;\n        jump clients\n    \
         }\n}\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{super::rules::tests::rules, *};

    #[test]
    fn what_everybody_may_reach_is_in_sets_and_the_rest_in_rules() {
        let shown = text(&rules(true, Some("eth0")));
        let expected = "\
table inet harbor
delete table inet harbor
table inet harbor {
    set tcp_ports {
        type inet_service
        flags interval
        elements = { 35000-35002, 35020 }
    }

    set udp_ports {
        type inet_service
        flags interval
        elements = { 35001 }
    }

    chain clients {
        iifname \"eth0\" tcp dport @tcp_ports accept
        iifname \"eth0\" udp dport @udp_ports accept
        iifname \"eth0\" ip saddr { 10.0.0.0/8 } udp dport { 50000 } accept
        iifname \"eth0\" ip6 saddr { fd00::/8 } udp dport { 50000 } accept
        iifname \"eth0\" ip saddr { 192.0.2.7/32 } tcp dport { 50001 } accept
    }

    chain input {
        type filter hook input priority filter; policy accept;
        jump clients
    }
}
";
        assert!(shown.ends_with(expected), "{shown}");
        let purpose = "# Lets clients in to the ports that service instances have of default (35000-35009, 35020), games \
                       (50000-50009). Made at 2026-11-21T09:15:18Z by harbor ports firewall.\n";
        assert!(shown.contains(purpose), "{shown}");
    }
}
