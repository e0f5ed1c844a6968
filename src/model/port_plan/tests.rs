use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;

const RANGE: &str = "2000-2009, 2020";

fn held(name: &str, ports: RangeInclusive<u16>, protocol: Protocol) -> Reservation {
    let pool = PoolName::new("default").unwrap();
    Reservation { pool, name: name.into(), first_port: *ports.start(), last_port: *ports.end(), protocol }
}

fn wish(name: &str, ports: Wanted) -> Wish {
    Wish { name: name.into(), ports, protocol: Protocol::Both }
}

fn given(name: &str, first: u16, last: u16) -> Wish {
    wish(name, Wanted::Given(first..=last))
}

/// A line for each step, or for each refusal.
fn planned(before: &[Reservation], allocated: &[u16], wishes: &[Wish], leave: Leave) -> Vec<String> {
    let (pool, range) = (PoolName::new("default").unwrap(), RANGE.parse().unwrap());
    let allocated = allocated.iter().copied().collect();
    let present = Present { pool: &pool, range: &range, reservations: before, allocated: &allocated };
    let block = |block: Option<Block>| block.map_or_else(|| "-".into(), |block| block.to_string());
    match plan(&present, wishes, leave) {
        Ok(plan) => plan
            .steps
            .iter()
            .map(|step| {
                let moved = step.moved_from.map(|port| format!(", moved from {port}")).unwrap_or_default();
                let kept =
                    if step.allocated.is_empty() { String::new() } else { format!(", kept {:?}", step.allocated) };
                format!(
                    "{} {} {} {}{moved}{kept}",
                    step.change().as_str(),
                    step.name,
                    block(step.before),
                    block(step.after)
                )
            })
            .collect(),
        Err(refusals) => refusals.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn check(before: &[Reservation], allocated: &[u16], wishes: &[Wish], leave: Leave, expected: &[&str]) {
    assert_eq!(planned(before, allocated, wishes, leave), expected);
}

const PRUNE: Leave = Leave { prune: true, when_free: false };
const WHEN_FREE: Leave = Leave { prune: false, when_free: true };

#[test]
fn names_are_added_changed_kept_and_released_only_when_that_is_asked_for() {
    let before = [
        held("same", 2000..=2000, Protocol::Both),
        held("moves", 2001..=2001, Protocol::Both),
        held("other", 2002..=2002, Protocol::Tcp),
    ];
    let wishes = [given("new", 2008, 2009), given("moves", 2003, 2003), given("same", 2000, 2000)];
    let expected =
        ["change moves 2001 (both) 2003 (both)", "add new - 2008-2009 (both)", "keep same 2000 (both) 2000 (both)"];
    check(&before, &[], &wishes, Leave::default(), &expected);
    check(&before, &[], &wishes, PRUNE, &[expected[0], expected[1], "remove other 2002 (tcp) -", expected[2]]);
    // Two names change places.
    let swapped = [given("same", 2001, 2001), given("moves", 2000, 2000)];
    let expected = ["change moves 2001 (both) 2000 (both)", "change same 2000 (both) 2001 (both)"];
    check(&before, &[], &swapped, Leave::default(), &expected);
}

/// It is made while others wait: port by port it would take minutes.
#[test]
fn the_largest_plan_over_a_pool_that_is_nearly_full_is_made_at_once() {
    let (pool, range) = (PoolName::new("default").unwrap(), "1024-65535".parse().unwrap());
    let allocated = (1024..61_024).collect();
    let present = Present { pool: &pool, range: &range, reservations: &[], allocated: &allocated };
    let wishes = (0..MAX_RESERVATIONS).map(|n| wish(&format!("n{n}"), Wanted::Chosen(1))).collect::<Vec<_>>();
    let made = plan(&present, &wishes, Leave::default()).unwrap();
    let moved = made.steps.iter().filter(|step| step.moved_from.is_some()).count();
    assert!(made.steps.len() == MAX_RESERVATIONS && moved > MAX_RESERVATIONS / 2, "{moved}");
}

#[test]
fn a_name_without_ports_keeps_those_that_it_has() {
    let before = [held("a", 2005..=2006, Protocol::Tcp)];
    let run = |count, protocol| Wish { protocol, ..wish("a", Wanted::Chosen(count)) };
    let same = run(2, Protocol::Tcp);
    check(&before, &[], std::slice::from_ref(&same), Leave::default(), &["keep a 2005-2006 (tcp) 2005-2006 (tcp)"]);
    // Also when a service instance has one of them still.
    let kept = "keep a 2005-2006 (tcp) 2005-2006 (tcp), kept [2005]";
    check(&before, &[2005], std::slice::from_ref(&same), Leave::default(), &[kept]);
    let wider = "change a 2005-2006 (tcp) 2005-2006 (both)";
    check(&before, &[], &[run(2, Protocol::Both)], Leave::default(), &[wider]);
    let longer = planned(&before, &[], &[run(3, Protocol::Tcp)], Leave::default());
    assert!(longer[0].starts_with("change a 2005-2006 (tcp) 20"), "{longer:?}");
    // Somebody else names them.
    let taken = planned(&before, &[], &[same, given("b", 2006, 2006)], Leave::default());
    assert!(taken[0].starts_with("change a 2005-2006 (tcp) 20") && taken[1] == "add b - 2006 (both)", "{taken:?}");
}

#[test]
fn a_service_instance_moves_a_choice_and_refuses_what_is_given() {
    let first = PortAllocator::of(&RANGE.parse().unwrap()).allocate("a").unwrap();
    let moved = planned(&[], &[first], &[wish("a", Wanted::Chosen(1))], Leave::default());
    assert!(moved[0].ends_with(&format!("(both), moved from {first}")), "{moved:?}");
    assert!(!moved[0].contains(&format!("- {first} ")), "{moved:?}");
    let refused = "port 2004 for a belongs to a service instance: choose another one, or hold it back once that one is gone \
                   by --when-free";
    check(&[], &[2004, 2005], &[given("a", 2003, 2006)], Leave::default(), &[refused]);
    check(&[], &[2004, 2005], &[given("a", 2003, 2006)], WHEN_FREE, &["add a - 2003-2006 (both), kept [2004, 2005]"]);
    // What the name has is not new to it.
    let before = [held("a", 2003..=2004, Protocol::Both)];
    let grown = "change a 2003-2004 (both) 2003-2005 (both), kept [2004]";
    check(&before, &[2004], &[given("a", 2003, 2005)], Leave::default(), &[grown]);
}

#[test]
fn all_that_cannot_be_had_is_told_at_once() {
    let before = [held("other", 2002..=2003, Protocol::Tcp)];
    let wishes = [
        given("Upper", 2000, 2000),
        given("twice", 2000, 2000),
        given("twice", 2000, 2000),
        given("outside", 2009, 2010),
        given("overlaps", 2003, 2003),
        wish("large", Wanted::Chosen(8)),
    ];
    let expected = [
        "\"Upper\" is no name for ports: use 1 to 63 small letters, digits and dashes, with a letter or digit at either end",
        "twice is asked for twice: leave one out",
        "2009-2010 is not in 2000-2009, 2020: choose other ports for outside",
        "overlaps overlaps other, which has 2002-2003 (tcp): choose other ports for one of them",
        "no 8 ports in a row (both) are left of 2000-2009, 2020 for large: choose a larger range, or release a name",
    ];
    check(&before, &[], &wishes, Leave::default(), &expected);
    let tcp = Wish { protocol: Protocol::Udp, ..given("udp", 2003, 2003) };
    check(&before, &[], &[tcp], Leave::default(), &["add udp - 2003 (udp)"]);
}

#[test]
fn what_a_name_has_outside_of_a_range_that_shrank_stays() {
    let before = [held("old", 3000..=3001, Protocol::Both)];
    let expected = ["keep old 3000-3001 (both) 3000-3001 (both)"];
    check(&before, &[], &[given("old", 3000, 3001)], Leave::default(), &expected);
    // Chosen anew, as nobody insists on those.
    let chosen = planned(&before, &[], &[wish("old", Wanted::Chosen(2))], Leave::default());
    assert!(chosen[0].starts_with("change old 3000-3001 (both) 200"), "{chosen:?}");
}

#[test]
fn a_pool_has_so_many_reservations_at_most() {
    let (pool, range) = (PoolName::new("default").unwrap(), "10000-20000".parse().unwrap());
    let present = Present { pool: &pool, range: &range, reservations: &[], allocated: &BTreeSet::new() };
    let port = |number: usize| 10_000 + u16::try_from(number).unwrap();
    let wishes =
        |count| (0..count).map(|number| given(&format!("n{number}"), port(number), port(number))).collect::<Vec<_>>();
    assert!(plan(&present, &wishes(MAX_RESERVATIONS), Leave::default()).is_ok());
    let refused = plan(&present, &wishes(MAX_RESERVATIONS + 1), Leave::default()).unwrap_err();
    assert_eq!(refused[0].to_string(), "the pool default would have 4097 reservations: 4096 are the most");
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let ports = (1998..2023_u16, 0..3_u16).prop_map(|(first, more)| Wanted::Given(first..=first + more));
    let wanted = prop_oneof![ports, (1..4_u16).prop_map(Wanted::Chosen)];
    let protocol = prop::sample::select(Protocol::ALL.to_vec());
    let wish = ("[a-e]", wanted, protocol).prop_map(|(name, ports, protocol)| Wish { name, ports, protocol });
    prop::collection::vec(wish, 0..5).prop_map(|mut wishes| {
        wishes.sort_by(|a, b| a.name.cmp(&b.name));
        wishes.dedup_by(|a, b| a.name == b.name);
        wishes
    })
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do_and_has_no_order(
        files in prop::collection::vec((wishes(), any::<bool>(), any::<bool>()), 1..6),
        allocated in prop::collection::btree_set(2000..2010_u16, 0..6),
        seed in any::<u64>(),
    ) {
        let (pool, range) = (PoolName::new("default").unwrap(), RANGE.parse().unwrap());
        let mut before: Vec<Reservation> = Vec::new();
        for (wishes, prune, when_free) in files {
            let leave = Leave { prune, when_free };
            let present = Present { pool: &pool, range: &range, reservations: &before, allocated: &allocated };
            let planned = plan(&present, &wishes, leave);
            let mut shuffled = wishes.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            match (&planned, plan(&present, &shuffled, leave)) {
                (Ok(one), Ok(other)) => prop_assert_eq!(one, &other),
                (Err(one), Err(other)) => prop_assert_eq!(one.len(), other.len()),
                (one, other) => prop_assert!(false, "{:?} and {:?}", one, other),
            }
            let Ok(planned) = planned else { continue };
            prop_assert!(prune <= (planned.others == 0));
            let others = planned.others;
            before.retain(|held| planned.steps.iter().all(|step| step.name != held.name));
            prop_assert_eq!(before.len(), others);
            before.extend(planned.steps.iter().filter_map(Step::made));
            for (index, one) in before.iter().enumerate() {
                prop_assert!(before[..index].iter().all(|other| !one.overlaps(other)), "{:?}", before);
            }
            let present = Present { pool: &pool, range: &range, reservations: &before, allocated: &allocated };
            let again = plan(&present, &wishes, leave).expect("it is there already");
            prop_assert!(again.steps.iter().all(|step| step.change() == Change::Keep), "{:?}", again);
        }
    }
}
