//! Reservations, the list of ports and firewall rules, asked of nodes that run.

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    cli::{self, Said, said},
    cluster::trio::{Trio, port_of, put, reach, wish},
    end_to_end::{PLAN_BOTH, PLAN_TCP, delete, provision, provision_with},
    support::{
        eventually::eventually_async,
        harbor::{Harbor, Site},
        namespaces::Network,
        postgres::Postgres,
    },
};

/// What `harbor ports …` says, asked of a node.
fn ask(site: &Site, node: &Harbor, arguments: &[&str]) -> Said {
    let mut command = site.command(&[&["ports"], arguments].concat());
    said(command.env("HARBOR_ADMIN_URL", reach(node)).env("SUDO_USER", "ana").current_dir(site.path()))
}

#[track_caller]
fn check(site: &Site, node: &Harbor, arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
    let expected = Said { code, stdout: stdout.into(), stderr: stderr.into() };
    assert_eq!(ask(site, node, arguments), expected, "harbor ports {arguments:?}");
}

/// The same as JSON.
#[track_caller]
fn asked(site: &Site, node: &Harbor, arguments: &[&str]) -> Value {
    let said = ask(site, node, &[arguments, &["--json"]].concat());
    assert_eq!((said.code, &*said.stderr), (0, ""), "{arguments:?}");
    serde_json::from_str(&said.stdout).expect("JSON")
}

fn write(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path().join(name), text).expect("it can be written");
}

/// Asks for this very port.
async fn wants(node: &Harbor, id: &str, port: u16) -> u16 {
    let body = wish(PLAN_TCP, json!({ "port": port }));
    node.broker().put(&format!("/v2/service_instances/{id}"), &body).await.status.as_u16()
}

const HELP: &str = "\
List ports, hold them back under names, check them, and print firewall rules

Usage: harbor ports [OPTIONS] <COMMAND>

Commands:
  list      Show what the ports of all pools are: whose, since when, and how they do on the node
            that is asked
  check     Check that nothing on this machine stands in the way of the pools' ports; or that files
            of reservations agree
  reserve   Hold a port or a run of ports of a pool back under a name
  release   Give the ports of a name back
  apply     Make the reservations of pools what a file says: all of it, or nothing
  firewall  Print the firewall rules that let clients in to a pool's ports
  help      Print this message or the help of the given subcommand(s)

Options:
      --config <FILE>  The configuration file; every key can also come from the environment [env:
                       HARBOR_CONFIG]
  -h, --help           Print help
";

const HELP_APPLY: &str = "\
Make the reservations of pools what a file says: all of it, or nothing

Usage: harbor ports apply [OPTIONS] <FILE>

Arguments:
  <FILE>  The file, such as ports.toml

Options:
      --config <FILE>      The configuration file; every key can also come from the environment
                           [env: HARBOR_CONFIG]
      --dry-run            Only tell what would be done
      --prune              Release the reservations of these pools that are not in the file, and
                           drop blocks that are not in it and have no names
      --when-free          Take ports that service instances have, too: they keep them, and nobody
                           gets them after
      --json               Print JSON
      --admin <URL>        Where the node's operators' API is [default: as in the configuration]
                           [env: HARBOR_ADMIN_URL]
      --token-file <FILE>  The file with its token [default: as in the configuration]; the variable
                           HARBOR_ADMIN_TOKEN holds the token itself
  -h, --help               Print help (see more with '--help')
";

#[test]
fn help_is_an_answer_and_a_wrong_command_line_ends_with_2() {
    cli::check(&[], &["ports", "-h"], 0, HELP, "");
    cli::check(&[], &["ports", "apply", "-h"], 0, HELP_APPLY, "");
    for (arguments, why) in [
        (&["list", "--limit", "0"][..], "error: invalid value '0' for '--limit <N>': 0 is not in 1..=5000\n"),
        (&["list", "--all", "--limit", "5"], "error: the argument '--all' cannot be used with '--limit <N>'\n"),
        (
            &["list", "--port", "2000, 2002"],
            "error: invalid value '2000, 2002' for '--port <PORT>': 2000, 2002 is not one range",
        ),
        (&["reserve", "a", "80"], "error: invalid value '80' for '[PORT]': port 80 is below 1024"),
        (&["reserve", "a", "--when-free"], "error: the following required arguments were not provided:\n  <PORT>"),
        (
            &["firewall", "--interface", "a b"],
            "error: invalid value 'a b' for '--interface <NAME>': an interface has a name of",
        ),
        (&["apply", "nowhere.toml"], "harbor: nowhere.toml: cannot read it"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let said = cli::harbor(directory.path(), &[], &[&["ports"], arguments].concat());
        assert!(said.code == 2 && said.stdout.is_empty() && said.stderr.starts_with(why), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_holds_its_ports_back_until_it_is_released() {
    let site = Site::new("24700-24709", "");
    let node = site.serve().await;
    let check =
        |arguments: &[&str], code, stdout: &str, stderr: &str| check(&site, &node, arguments, code, stdout, stderr);
    check(
        &["reserve", "sip", "24703-24704", "--protocol", "udp"],
        0,
        "sip has 24703-24704 (udp) of the pool default\n",
        "",
    );
    let already = "sip has 24703-24704 (udp) of the pool default already\n";
    check(&["reserve", "sip", "24703-24704", "--protocol", "udp"], 0, already, "");
    check(&["reserve", "sip", "--ports", "2", "--protocol", "udp"], 0, already, "");
    assert_eq!(wants(&node, "a", 24_703).await, 400, "a port is held back whatever its protocol");

    // Chosen by the name: as `PortAllocator` over the pool comes to.
    let chosen = harbor::PortAllocator::new(24_700, 24_709).allocate("mqtt").expect("there is room");
    check(&["reserve", "mqtt"], 0, &format!("mqtt has {chosen} (both) of the pool default\n"), "");
    check(&["release", "mqtt"], 0, &format!("mqtt has given {chosen} (both) of the pool default back\n"), "");
    assert_eq!(wants(&node, "b", chosen).await, 201);
    let moved = ask(&site, &node, &["reserve", "mqtt"]);
    assert!(
        moved.stdout.contains(&format!("its name comes to {chosen}, where a service instance is in the way")),
        "{moved:?}"
    );
    check(&["release", "sip"], 0, "sip has given 24703-24704 (udp) of the pool default back\n", "");
    ask(&site, &node, &["release", "mqtt"]);

    check(&["reserve", "b", "24701-24702"], 0, "b has 24701-24702 (both) of the pool default\n", "");
    for (arguments, stderr) in [
        (
            &["reserve", "c", "24702"][..],
            "In the pool default, c overlaps b, which has 24701-24702 (both): choose other ports for one of them.",
        ),
        (
            &["reserve", "b", "24705"],
            "In the pool default, b has 24701-24702 (both) already: release it first, or ask for the same.",
        ),
        (&["reserve", "c", "24710"], "In the pool default, 24710 is not in 24700-24709: choose other ports for c."),
        (
            &["reserve", "c", "--ports", "20"],
            "In the pool default, no 20 ports in a row (both) are left of 24700-24709 for c: choose a larger range, or release a name.",
        ),
        (
            &["reserve", "c", "--pool", "games"],
            "There is no pool \"games\": `harbor ports list` ends with all of them.",
        ),
        (
            &["release", "c"],
            "The pool default has no reservation \"c\": `harbor ports list --state reserved` shows all.",
        ),
        (
            &["release", "c", "--pool", "games"],
            "There is no pool \"games\": `harbor ports list` ends with all of them.",
        ),
    ] {
        // Ports that the pool does not have are a mistake of the command line.
        let code = if stderr.contains("is not in") { 2 } else { 1 };
        check(arguments, code, "", &format!("harbor: {stderr}\n"));
    }
    let name_rule = "harbor: \"No\" is no name for ports: use 1 to 63 small letters, digits and dashes, with a letter or digit at \
                     either end\n";
    check(&["reserve", "No"], 2, "", name_rule);

    // A port that a service instance has is held back once it is gone.
    let port = chosen.to_string();
    let refused = ask(&site, &node, &["reserve", "later", &port]);
    let why =
        format!("harbor: In the pool default, port {port} for later belongs to a service instance: choose another one");
    assert!(refused.code == 1 && refused.stderr.starts_with(&why), "{refused:?}");
    let held = ask(&site, &node, &["reserve", "later", &port, "--when-free"]);
    assert!(
        held.stdout.ends_with(&format!("keep {port} until they are deleted; later has them after that\n")),
        "{held:?}"
    );
    delete(&node, "b", PLAN_TCP).await;
    assert_eq!(wants(&node, "c", chosen).await, 400);

    let listed = asked(&site, &node, &["list", "--state", "reserved", "--name", "later"]);
    let entry = &listed["ports"][0];
    assert!(entry["by"].as_str().unwrap().starts_with("ana@"), "{entry}");
    assert!(entry["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        (&entry["port"], &entry["last_port"], &entry["state"]),
        (&json!(chosen), &json!(chosen), &json!("reserved"))
    );
    let audited = node.logged("\"action\":\"release\"");
    assert!(
        audited.contains(r#""setting":"reservations.default.mqtt""#) && audited.contains(r#""user":"ana@"#),
        "{audited}"
    );
    let history = node.admin().get("/admin/v1/status").await;
    assert_eq!(history.json()["pools"][0]["reserved"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_applied_whole_or_not_at_all() {
    let site = Site::new("24710-24719", "");
    let node = site.serve().await;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/ports.toml");
    let manifest = manifest.to_str().unwrap();
    let plan = "\
+ block infrastructure 25000-25999
+ infrastructure ceph-rgw 25080 (both)
+ infrastructure control-plane 25500-25519 (both)
+ infrastructure https 25443 (both)
+ infrastructure metrics 25090-25099 (both)
+ infrastructure spare 25550-25599 (both)
";
    let dry = format!("{plan}5 to add, 0 to change, 0 to remove, 0 as they are; nothing was changed\n");
    check(&site, &node, &["apply", manifest, "--dry-run"], 0, &dry, "");
    check(&site, &node, &["apply", manifest, "--dry-run"], 0, &dry, "");
    check(&site, &node, &["apply", manifest], 0, &format!("{plan}5 added, 0 changed, 0 removed, 0 as they were\n"), "");
    check(&site, &node, &["apply", manifest], 0, "0 added, 0 changed, 0 removed, 5 as they were\n", "");
    let listed = ask(&site, &node, &["list", "--pool", "infrastructure"]);
    let block =
        "5 reserved\nblock infrastructure (25000-25999): 1000 ports that no pool gives out, 82 of them with a name\n";
    assert!(listed.stdout.ends_with(block), "{listed:?}");
    // It is no pool that anything comes out of, nor one that the status has to tell of.
    assert_eq!(node.admin().get("/admin/v1/status").await.json()["pools"].as_array().unwrap().len(), 1);

    let more = "[default.ports]\nmqtt = {}\nldap = 24711\n[infrastructure]\nrange = \"25000-25999\"\n[infrastructure.ports]\n\
                https = 25444\n";
    write(&site, "more.toml", more);
    let chosen = {
        let mut ports = harbor::PortAllocator::new(24_710, 24_719);
        ports.reserve("ldap", 24_711..=24_711, harbor::model::Protocol::Both).unwrap();
        ports.allocate("mqtt").unwrap()
    };
    let plan = format!(
        "+ default ldap 24711 (both)\n+ default mqtt {chosen} (both)\n~ infrastructure https 25443 (both) -> 25444 (both)\n"
    );
    let others = "4 more names of these pools are not in more.toml: --prune releases them\n";
    let told = format!("{plan}2 added, 1 changed, 0 removed, 0 as they were\n{others}");
    check(&site, &node, &["apply", "more.toml"], 0, &told, "");
    let pruned = ask(&site, &node, &["apply", "more.toml", "--prune"]);
    assert!(pruned.stdout.ends_with("\n0 added, 0 changed, 4 removed, 3 as they were\n"), "{pruned:?}");
    assert!(pruned.stdout.starts_with("- infrastructure ceph-rgw 25080 (both)\n"), "{pruned:?}");

    // Of one that cannot be had whole nothing is done.
    let before = asked(&site, &node, &["list", "--all"]);
    for (text, code, stderr) in [
        (
            "[default.ports]\nfine = 24719\nldap2 = 24711\nfar = 24720\n",
            2,
            "harbor: In the pool default, 24720 is not in 24710-24719: choose other ports for far\n\
             harbor: in the pool default, ldap2 overlaps ldap, which has 24711 (both): choose other ports for one of them.\n",
        ),
        (
            "[default]\nrange = \"24710-24729\"\n[default.ports]\nfine = 24719\n",
            1,
            "harbor: Default is a pool, which has 24710-24719 and not 24710-24729: leave range out, or give the block another name.\n",
        ),
        (
            "[default.ports]\nfine = 24719\n[rack]\nrange = \"25999-26100\"\n",
            1,
            "harbor: Port 25999 would be in the ranges of both rack and infrastructure: change one, or drop infrastructure, \
             which --prune does once it has no names and is not in the file.\n",
        ),
        (
            "[default.ports]\nfine = 24719\n[games.ports]\na = 24800\n",
            1,
            "harbor: There is no pool \"games\": `harbor ports list` ends with all of them.\n",
        ),
        ("[default.ports]\nFine = 24719\n", 2, ""),
    ] {
        write(&site, "wrong.toml", text);
        let refused = ask(&site, &node, &["apply", "wrong.toml"]);
        assert_eq!((refused.code, &*refused.stdout), (code, ""), "{refused:?}");
        assert!(refused.stderr == stderr || stderr.is_empty(), "{refused:?}");
    }
    assert_eq!(asked(&site, &node, &["list", "--all"]), before);
    // A block can grow, and a new process finds it.
    write(&site, "grown.toml", &more.replace("25999", "26099"));
    let grown = ask(&site, &node, &["apply", "grown.toml"]);
    assert!(grown.stdout.starts_with("+ block infrastructure 25000-26099\n0 added"), "{grown:?}");
    drop(node);
    let node = site.serve().await;
    check(&site, &node, &["apply", "grown.toml"], 0, "0 added, 0 changed, 0 removed, 3 as they were\n", "");

    // Nor is it moved over by a pool.
    let set = ["config", "set", "harbor_node", "port_range", "24710-24719, 26099"];
    let refused = said(site.command(&set).env("HARBOR_ADMIN_URL", reach(&node)));
    let why = "Port 26099 would be in the ranges of both default and the block infrastructure: change one";
    assert!(refused.code == 1 && refused.stderr.contains(why), "{refused:?}");
    assert_eq!(asked(&site, &node, &["list"])["pools"][0]["ports"], "24710-24719");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_block_goes_as_soon_as_it_has_no_names() {
    let site = Site::new("24790-24799", "");
    let node = site.serve().await;
    let block = |name: &str| format!("[{name}]\nrange = \"45000-45999\"\n[{name}.ports]\nrgw = 45080\n");
    write(&site, "wrong.toml", &block("rakc"));
    assert_eq!(ask(&site, &node, &["apply", "wrong.toml"]).code, 0);
    write(&site, "right.toml", &block("rack"));
    let overlaps = "harbor: Port 45000 would be in the ranges of both rack and rakc: change one, or drop rakc, which --prune does \
                    once it has no names and is not in the file.\n";
    check(&site, &node, &["apply", "right.toml", "--prune"], 1, "", overlaps);
    let released = "rgw has given 45080 (both) of the pool rakc back\n";
    check(&site, &node, &["release", "rgw", "--pool", "rakc"], 0, released, "");
    check(&site, &node, &["apply", "right.toml"], 1, "", overlaps);
    let plan = "+ block rack 45000-45999\n- block rakc 45000-45999\n+ rack rgw 45080 (both)\n";
    let dry = format!("{plan}1 to add, 0 to change, 0 to remove, 0 as they are; nothing was changed\n");
    check(&site, &node, &["apply", "right.toml", "--prune", "--dry-run"], 0, &dry, "");
    let done = format!("{plan}1 added, 0 changed, 0 removed, 0 as they were\n");
    check(&site, &node, &["apply", "right.toml", "--prune"], 0, &done, "");
    let again = "0 added, 0 changed, 0 removed, 1 as they were\n";
    check(&site, &node, &["apply", "right.toml", "--prune"], 0, again, "");
    let pools = asked(&site, &node, &["list"])["pools"].as_array().unwrap().clone();
    assert_eq!(pools.iter().map(|pool| &pool["name"]).collect::<Vec<_>>(), ["default", "rack"]);
    let audited = node.logged("\"action\":\"drop_pool\"");
    assert!(audited.contains(r#""pool":"rakc""#) && audited.contains(r#""user":"ana@"#), "{audited}");
    let history = said(site.command(&["config", "history"]).env("HARBOR_ADMIN_URL", reach(&node)));
    assert!(history.code == 0 && history.stdout.contains("blocks.rakc"), "{history:?}");
    // What has a name stays, though the file does not speak of it.
    write(&site, "other.toml", "[default.ports]\nmqtt = 24790\n");
    let applied = ask(&site, &node, &["apply", "other.toml", "--prune"]);
    assert_eq!(applied.stdout, "+ default mqtt 24790 (both)\n1 added, 0 changed, 0 removed, 0 as they were\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_reserves_no_other_gives_out() {
    let trio = Trio::start(Postgres::shared(), 2, "24720-24739").await;
    let (site, nodes) = (&trio.sites[0], &trio.nodes);
    for number in 0..10_u16 {
        let (name, port) = (format!("n{number}"), 24_720 + number);
        let reserved = ask(site, &nodes[0], &["reserve", &name, &port.to_string()]);
        assert_eq!(reserved.code, 0, "{reserved:?}");
        // At once: the other node need not have heard of it.
        assert_eq!(wants(&nodes[1], &name, port).await, 400, "{name}");
    }
    for id in ["a", "b", "c", "d"] {
        assert_eq!(put(&nodes[1], id, "").await.status, 201);
        assert!(port_of(&nodes[1], id).await >= 24_730, "{id}");
    }
    // Either node tells all of it.
    let ports =
        |listed: Value| listed["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect::<Vec<_>>();
    let all = [0, 1].map(|number| ports(asked(&trio.sites[number], &nodes[number], &["list"])));
    assert_eq!((all[0].len(), &all[0]), (14, &all[1]));
    assert_eq!(ask(&trio.sites[1], &nodes[1], &["release", "n3"]).code, 0);
    // What is released can be had again as soon as a node has heard of it.
    eventually_async("the port can be had again", || async {
        (wants(&nodes[0], "n3", 24_723).await == 201).then_some(())
    })
    .await;
}

#[test]
fn a_port_is_no_name() {
    for port in ["21001", "21001-21005"] {
        let words = format!(
            "harbor: {port:?} would be the name: write `harbor ports reserve NAME {port}` for these ports, or a name with a \
             letter\n"
        );
        cli::check(&[], &["ports", "reserve", port], 2, "", &words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_is_told_page_by_page() {
    let site = Site::new("24740-24759", "").with("harbor_node.quarantine", "1h");
    let node = site.serve().await;
    for (id, port, plan) in [("a", 24_740, PLAN_TCP), ("b", 24_741, PLAN_BOTH), ("c", 24_745, PLAN_TCP)] {
        provision_with(&node, id, plan, json!({ "port": port })).await;
    }
    provision_with(&node, "gone", PLAN_TCP, json!({ "port": 24_743 })).await;
    delete(&node, "gone", PLAN_TCP).await;
    for (name, ports, protocol) in
        [("dns-tcp", "24750", "tcp"), ("dns-udp", "24750", "udp"), ("run", "24747-24749", "both")]
    {
        assert_eq!(ask(&site, &node, &["reserve", name, ports, "--protocol", protocol]).code, 0);
    }
    // What one sees of it in a line: state, first port, name or id.
    let told = |listed: &Value| {
        let line = |port: &Value| {
            let word = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}{}", word("state"), port["port"], word("service_instance"), word("name"))
        };
        listed["ports"].as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    let all = [
        "allocated 24740 a",
        "allocated 24741 b",
        "quarantined 24743 ",
        "allocated 24745 c",
        "reserved 24747 run",
        "reserved 24750 dns-tcp",
        "reserved 24750 dns-udp",
    ];
    assert_eq!(told(&asked(&site, &node, &["list"])), all);
    assert_eq!(told(&asked(&site, &node, &["list", "--all"])), all);
    for limit in 1..=8 {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = node.admin().get(&format!("/admin/v1/ports?limit={limit}{after}")).await.json();
            assert_eq!(page["pools"].as_array().unwrap().is_empty(), !after.is_empty(), "only with the first page");
            found.extend(told(&page));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(found, all, "{limit}");
    }
    for (filter, expected) in [
        (&["--state", "allocated"][..], &[0, 1, 3][..]),
        (&["--state", "quarantined"], &[2]),
        (&["--state", "in_conflict"], &[]),
        (&["--protocol", "both"], &[1, 4]),
        (&["--protocol", "udp"], &[6]),
        (&["--org", "o"], &[0, 1, 3]),
        (&["--space", "s"], &[0, 1, 2, 3]),
        (&["--space", "elsewhere"], &[]),
        (&["--service-instance", "c"], &[3]),
        (&["--service-instance", "nobody"], &[]),
        (&["--port", "24748"], &[4]),
        (&["--port", "24741-24746"], &[1, 2, 3]),
        (&["--name", "dns"], &[5, 6]),
        (&["--pool", "default", "--name", "run"], &[4]),
    ] {
        let expected = expected.iter().map(|place| all[*place]).collect::<Vec<_>>();
        assert_eq!(told(&asked(&site, &node, &[&["list"], filter].concat())), expected, "{filter:?}");
    }
    let limited = ask(&site, &node, &["list", "--limit", "2"]);
    assert!(limited.stdout.contains("\n2 allocated, and more: --all shows them\n"), "{limited:?}");
    let summary = "3 allocated, 3 reserved, 1 quarantined\npool default (24740-24759): 12 free, 3 allocated, 1 quarantined, 4 reserved\n";
    let said = ask(&site, &node, &["list"]);
    assert!(said.stdout.ends_with(summary) && said.stdout.contains("  bound  "), "{said:?}");
    let free = "POOL     FREE   PORTS\ndefault  12     24742, 24744, 24746, 24751-24759\n";
    check(&site, &node, &["list", "--free"], 0, free, "");
    check(
        &site,
        &node,
        &["list", "--pool", "games"],
        1,
        "",
        "harbor: There is no pool \"games\": `harbor ports list` ends with all of them.\n",
    );
    for (query, status) in
        [("limit=0", 400), ("limit=5001", 400), ("state=odd", 400), ("after=odd", 400), ("odd=1", 400), ("pool=x", 404)]
    {
        assert_eq!(node.admin().get(&format!("/admin/v1/ports?{query}")).await.status, status, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_has_forgotten_is_found_and_left_alone() {
    let site = Site::new("24760-24769", "");
    let node = site.serve().await;
    for id in ["known", "forgotten"] {
        provision(&node, id, PLAN_TCP).await;
    }
    let listing = |ids: &[&str], total: usize, next: Value| {
        let resources = ids.iter().map(|id| json!({ "guid": id, "type": "managed" })).collect::<Vec<_>>();
        let page = json!({ "pagination": { "total_results": total, "next": next }, "resources": resources });
        write(&site, "platform.json", &page.to_string());
        // As if it were written in an hour: what is younger than a listing is not in it.
        let file = std::fs::File::options().write(true).open(site.path().join("platform.json")).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written + Duration::from_secs(3600)).unwrap();
    };
    let unknown = ["list", "--unknown-to", "platform.json"];
    listing(&["known", "forgotten", "of another broker"], 3, Value::Null);
    check(&site, &node, &unknown, 0, "platform.json has 3 service instances, and each of the 2 here among them\n", "");
    listing(&["known"], 1, Value::Null);
    let said = ask(&site, &node, &unknown);
    assert_eq!((said.code, &*said.stderr), (1, ""));
    assert!(said.stdout.contains("forgotten, organization o, space s\n1 allocated\n"), "{said:?}");
    assert!(said.stdout.contains("\n1 of 2 service instances are not among the 1 of platform.json.\n"), "{said:?}");
    listing(&["known"], 2, json!({ "href": "https://api.example.com/v3/service_instances?page=2" }));
    let cut = "harbor: platform.json: it is cut short, with 1 of 2 service instances: append the pages that its `next` leads to\n";
    check(&site, &node, &unknown, 2, "", cut);
    // One that was made when the listing was.
    write(&site, "platform.json", r#"{"pagination":{"total_results":1,"next":null},"resources":[{"guid":"known"}]}"#);
    let said = ask(&site, &node, &unknown);
    assert!(said.code == 0 && said.stdout.contains("1 more are younger than platform.json"), "{said:?}");
    // Nothing was deleted. The command that was told does it.
    listing(&["known"], 1, Value::Null);
    let told = ask(&site, &node, &unknown).stdout;
    let command = told.lines().find(|line| line.trim_start().starts_with("curl")).expect("it is told").to_owned();
    let mut curl = Command::new("sh");
    let broker = format!("http://{}", node.address("broker"));
    write(&site, "broker.netrc", "default login harbor password secret");
    curl.args(["-c", &format!("{command} -sf -o answer.json")]).env("BROKER", broker);
    assert!(curl.current_dir(site.path()).status().expect("there is a shell").success(), "{command}");
    check(&site, &node, &unknown, 0, "platform.json has 1 service instances, and each of the 1 here among them\n", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn firewalls_take_the_rules_that_are_printed() {
    let Some(mut network) = Network::new("firewalls_take_the_rules_that_are_printed") else { return };
    let machine = network.machine("firewall");
    let run = |command: &str| {
        let mut shell = Command::new("sh");
        let output = machine.inside(shell.args(["-c", command]).env("PATH", PATH)).output().expect("there is a shell");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let site = Site::new("24770-24789", "");
    let node = site.serve().await;
    let allow = json!({ "port": 24_771, "allow": ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"] });
    provision_with(&node, "a", PLAN_TCP, allow).await;
    provision_with(&node, "b", PLAN_BOTH, json!({ "port": 24_773 })).await;
    let printed = |format: &str, more: &[&str]| {
        let said = ask(&site, &node, &[&["firewall", "--format", format], more].concat());
        assert_eq!((said.code, &*said.stderr), (0, ""), "{more:?}");
        write(&site, "rules", &said.stdout);
        (site.path().join("rules").display().to_string(), said.stdout)
    };
    let whole = &[][..];
    for more in [&["--allocated"][..], &["--allocated", "--interface", "lo"], &["--pool", "default"], whole] {
        let (file, _) = printed("nft", more);
        run(&format!("nft -c -f {file} && nft -f {file}"));
        let once = run("nft list table inet harbor");
        assert!(once.contains("tcp dport @tcp_ports accept"), "{once}");
        run(&format!("nft -f {file}"));
        assert_eq!(run("nft list table inet harbor"), once, "{more:?}");

        let (file, text) = printed("iptables", more);
        for (tables, other) in [("iptables", " -6 "), ("ip6tables", " -4 ")] {
            let is_rule = |line: &&str| line.starts_with("-A ") && !line.contains(other);
            let rules = text.lines().filter(is_rule).count();
            let jump = text.lines().find_map(|line| line.strip_prefix(&format!("#   {tables} ")));
            let jump = jump.expect("it is told how to jump there");
            for _ in 0..2 {
                run(&format!("{tables}-restore --noflush --test {file} && {tables}-restore --noflush {file}"));
                run(&format!("{tables} {jump}"));
                let listed = run(&format!("{tables} -S"));
                assert_eq!(listed.matches("-A INPUT -j HARBOR").count(), 1, "{listed}");
                assert_eq!(listed.matches("-A HARBOR ").count(), rules, "{listed}");
            }
        }
    }
    let rules = run("nft list table inet harbor");
    assert!(rules.contains("24770-24789"), "{rules}");

    let live = |key_and_value: [&str; 2]| {
        let mut command = site.command(&[&["config", "set"], &key_and_value[..]].concat());
        let said = said(command.env("HARBOR_ADMIN_URL", reach(&node)));
        assert_eq!((said.code, &*said.stderr), (0, ""), "{key_and_value:?}");
    };
    live(["harbor_node.port_range", "24775-24789"]);
    live(["forwarder.proxy_from", "192.0.2.7"]);
    let rules = |more: &[&str]| serde_json::from_str::<Value>(&printed("json", more).1).expect("JSON")["rules"].clone();
    let all = json!(["24771", "24773", "24775-24789"]);
    assert_eq!(
        rules(whole),
        json!([{ "transport": "tcp", "ports": all, "from": [] }, { "transport": "udp", "ports": all, "from": [] }])
    );
    assert_eq!(
        rules(&["--allocated"]),
        json!([
            { "transport": "tcp", "ports": ["24773"], "from": [] },
            { "transport": "udp", "ports": ["24773"], "from": [] },
            { "transport": "tcp", "ports": ["24771"], "from": ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"] },
        ])
    );
}

/// Where administrators' programs are.
const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
