//! Each sort of harm, in ledgers made for it.

use super::*;
use crate::chaos::payload::Mode;

const NORMAL: Stream = Stream { lane: 1, mode: Mode::Reliable };
const EFFORT: Stream = Stream { lane: 1, mode: Mode::BestEffort };

fn on(stream: Stream, what: What, life: u16, sequence: u32) -> Line {
    Line { what, stamp: Stamp { from: 3, stream, life, sequence }, digest: u64::from(sequence) << 8 }
}

fn lines(what: What, numbers: impl IntoIterator<Item = u32>) -> Vec<Line> {
    numbers.into_iter().map(|number| on(NORMAL, what, 0, number)).collect()
}

/// A living sender whose messages 0 to `count` were all acknowledged.
fn all_acked(count: u32) -> Vec<Vec<Line>> {
    vec![[lines(What::Sent, 0..count), lines(What::Acked, 0..count)].concat()]
}

fn verdict(sent: &[Vec<Line>], received: &[Vec<Line>]) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.count(sent, received);
    verdict
}

/// The counters that must be zero when nothing went wrong.
fn faults(verdict: Verdict) -> Vec<(&'static str, u64)> {
    let all = [
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("reordered", verdict.reordered),
        ("corrupted", verdict.corrupted),
        ("unexpected", verdict.unexpected),
        ("announced_without_restart", verdict.announced_without_restart),
        ("unknown_without_kills", verdict.unknown_without_kills),
        ("returned_and_delivered", verdict.returned_and_delivered),
        ("returned_damaged", verdict.returned_damaged),
        ("wrong_outcomes", verdict.wrong_outcomes),
        ("resent", verdict.resent),
    ];
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn what_arrived_whole_and_in_order_has_no_fault() {
    let verdict = verdict(&all_acked(10), &[lines(What::Taken, 0..10)]);
    assert_eq!(verdict, Verdict { accepted: 10, acked: 10, delivered: 10, ..Verdict::default() });
}

#[test]
fn each_harm_counts_in_its_own_counter_only() {
    let taken = |numbers: &[u32]| lines(What::Taken, numbers.iter().copied());
    let mut other_bytes = taken(&[0, 1, 2, 3]);
    other_bytes[2].digest += 1;
    let mut damaged = taken(&[0, 1, 2, 3]);
    damaged[2].what = What::Damaged;
    for (received, fault) in [
        (taken(&[0, 1, 3]), "lost"),
        (taken(&[0, 1, 1, 2, 3]), "duplicated"),
        (taken(&[0, 1, 2, 3, 1]), "duplicated"),
        (taken(&[0, 2, 1, 3]), "reordered"),
        (taken(&[0, 1, 2, 3, 4]), "unexpected"),
        (other_bytes, "corrupted"),
        (damaged, "corrupted"),
    ] {
        assert_eq!(faults(verdict(&all_acked(4), &[received])), [(fault, 1)], "{fault}");
    }
}

#[test]
fn streams_are_ordered_each_on_its_own() {
    let streams = [0, 1, 2].map(|lane| Stream { lane, mode: Mode::Reliable });
    let sent = streams
        .iter()
        .flat_map(|stream| (0..3).flat_map(|n| [on(*stream, What::Sent, 0, n), on(*stream, What::Acked, 0, n)]));
    let received = streams.iter().rev().flat_map(|stream| (0..3).map(|n| on(*stream, What::Taken, 0, n)));
    assert_eq!(faults(verdict(&[sent.collect()], &[received.collect()])), []);
}

#[test]
fn a_message_without_an_outcome_is_missing_in_the_sum_and_lost_if_it_did_not_come() {
    let sent = [[lines(What::Sent, 0..4), lines(What::Acked, 0..2)].concat()];
    let verdict = verdict(&sent, &[lines(What::Taken, 0..3)]);
    assert_eq!((verdict.accepted, verdict.acked, verdict.lost), (4, 2, 1));
}

#[test]
fn a_killed_receiver_may_be_handed_a_message_once_more_if_it_is_told_so() {
    let first = lines(What::Taken, 0..3);
    let again = |what| [lines(what, 1..3), lines(What::Taken, 3..5)].concat();
    let good = verdict(&all_acked(5), &[first.clone(), again(What::Repeat)]);
    assert_eq!((faults(good), good.repeats_marked, good.delivered), (vec![], 2, 7));
    let silent = verdict(&all_acked(5), &[first.clone(), again(What::Taken)]);
    assert_eq!((faults(silent), silent.repeats_marked), (vec![("duplicated", 2)], 0));
    let thrice = [first.clone(), again(What::Repeat), lines(What::Repeat, 3..5), lines(What::Repeat, 3..4)];
    assert_eq!(faults(verdict(&all_acked(5), &thrice)), [("duplicated", 1)]);
    let same_process = [first, [lines(What::Repeat, 1..2), lines(What::Repeat, 1..2)].concat()];
    assert_eq!(faults(verdict(&all_acked(3), &same_process)), [("duplicated", 1)]);
}

#[test]
fn an_announcement_without_a_restart_is_a_fault() {
    assert_eq!(faults(verdict(&all_acked(3), &[lines(What::Repeat, 0..3)])), [("announced_without_restart", 3)]);
}

#[test]
fn repeats_are_in_order_and_what_is_no_repeat_is_behind_all_of_the_earlier_process() {
    let exchanged = [lines(What::Taken, 0..3), lines(What::Repeat, [2, 1])];
    assert_eq!(faults(verdict(&all_acked(3), &exchanged)), [("reordered", 1)]);
    let late = [lines(What::Taken, [0, 2]), lines(What::Taken, [1])];
    assert_eq!(faults(verdict(&all_acked(3), &late)), [("reordered", 1)]);
    let written_in_part = [lines(What::Taken, [0, 2]), lines(What::Repeat, [1])];
    assert_eq!(faults(verdict(&all_acked(3), &written_in_part)), []);
}

#[test]
fn unknown_needs_two_kills_of_the_receiver() {
    let sent = [[lines(What::Sent, 0..3), lines(What::Acked, 0..1), lines(What::Unknown, 1..3)].concat()];
    let one = lines(What::Taken, 0..2);
    let calm = verdict(&sent, std::slice::from_ref(&one));
    assert_eq!((faults(calm), calm.unknown), (vec![("lost", 1), ("unknown_without_kills", 2)], 2));
    let killed = verdict(&sent, &[one.clone(), vec![]]);
    assert_eq!(faults(killed), [("lost", 1), ("unknown_without_kills", 2)]);
    let twice = verdict(&sent, &[one, vec![], vec![]]);
    assert_eq!((faults(twice), twice.accepted, twice.acked, twice.unknown), (vec![], 3, 1, 2));
}

#[test]
fn one_kill_is_enough_for_a_message_that_was_wanted_for_a_limited_time() {
    let sent = [[lines(What::Brief, 0..2), lines(What::Acked, 0..1), lines(What::Unknown, 1..2)].concat()];
    let one = lines(What::Taken, 0..1);
    assert_eq!(faults(verdict(&sent, std::slice::from_ref(&one))), [("lost", 1), ("unknown_without_kills", 1)]);
    assert_eq!(faults(verdict(&sent, &[one, vec![]])), []);
}

#[test]
fn what_was_returned_must_not_have_been_delivered() {
    let sent = [[lines(What::Sent, 0..3), lines(What::Acked, [0, 1]), lines(What::Returned, [2])].concat()];
    let verdict_of = |upto| verdict(&sent, &[lines(What::Taken, 0..upto)]);
    assert_eq!((faults(verdict_of(2)), verdict_of(2).returned), (vec![], 1));
    assert_eq!(faults(verdict_of(3)), [("returned_and_delivered", 1)]);
    let mut other_bytes = sent;
    other_bytes[0].last_mut().unwrap().digest += 1;
    assert_eq!(faults(verdict(&other_bytes, &[lines(What::Taken, 0..2)])), [("returned_damaged", 1)]);
}

#[test]
fn what_a_killed_sender_did_not_see_the_end_of_is_counted_apart() {
    let killed = [lines(What::Sent, 0..5), lines(What::Acked, 0..2)].concat();
    let next: Vec<Line> =
        [What::Sent, What::Acked].iter().flat_map(|what| (0..2).map(|n| on(NORMAL, *what, 1, n))).collect();
    let mut received = lines(What::Taken, 0..3);
    received.extend((0..2).map(|n| on(NORMAL, What::Taken, 1, n)));
    let verdict = verdict(&[killed, next], &[received]);
    assert_eq!(faults(verdict), []);
    assert_eq!((verdict.accepted, verdict.acked), (4, 4));
    assert_eq!((verdict.accepted_by_killed, verdict.delivered_of_killed), (3, 1));
}

#[test]
fn nothing_of_an_earlier_life_of_the_sender_comes_behind_a_later_one() {
    let received = vec![on(NORMAL, What::Taken, 1, 0), on(NORMAL, What::Taken, 0, 1)];
    let sent = [lines(What::Sent, 0..2), vec![on(NORMAL, What::Sent, 1, 0), on(NORMAL, What::Acked, 1, 0)]];
    assert_eq!(faults(verdict(&sent, &[received])), [("reordered", 1)]);
}

#[test]
fn best_effort_may_get_lost_and_is_counted_apart() {
    let line = |what, n| on(EFFORT, what, 0, n);
    let mut sent: Vec<Line> = (0..4).map(|n| line(What::Sent, n)).collect();
    sent.extend([line(What::Written, 0), line(What::Written, 1), line(What::Returned, 2), line(What::Written, 3)]);
    let good = verdict(std::slice::from_ref(&sent), &[vec![line(What::Taken, 1), line(What::Taken, 3)]]);
    assert_eq!((faults(good), good.accepted, good.delivered, good.effort_delivered), (vec![], 0, 0, 2));
    assert_eq!((good.effort_accepted, good.effort_written, good.effort_returned), (4, 3, 1));
    let bad = verdict(&[sent], &[vec![line(What::Taken, 3), line(What::Taken, 3), line(What::Taken, 1)]]);
    assert_eq!(faults(bad), [("duplicated", 1), ("reordered", 1)]);
}

#[test]
fn wrong_books_are_found() {
    let twice = [[lines(What::Sent, [0, 0]), lines(What::Acked, [0])].concat()];
    assert_eq!(faults(verdict(&twice, &[lines(What::Taken, 0..1)])), [("resent", 1)]);
    let second = [[lines(What::Sent, [0]), lines(What::Acked, [0, 0])].concat()];
    assert_eq!(faults(verdict(&second, &[lines(What::Taken, 0..1)])), [("wrong_outcomes", 1)]);
    let of_nothing = [lines(What::Acked, [7])];
    assert_eq!(faults(verdict(&of_nothing, &[vec![]])), [("wrong_outcomes", 1)]);
    let refused = [[lines(What::Sent, [0]), lines(What::Refused, [0])].concat()];
    let verdict = verdict(&refused, &[vec![]]);
    assert_eq!((faults(verdict), verdict.refused, verdict.accepted), (vec![], 1, 0));
}

#[test]
fn ledgers_are_found_where_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    (0..2).for_each(|node| std::fs::create_dir(folder.path().join(format!("node-{node}"))).unwrap());
    let write = |path: PathBuf, line: Line| {
        ledger::Ledger::open(path).unwrap().append(&line).unwrap();
    };
    for what in [What::Sent, What::Acked] {
        write(ledger::sent_by(folder.path(), 1, 2, 0), on(NORMAL, what, 2, 9));
    }
    write(ledger::received_by(folder.path(), 0, 1, 1), on(NORMAL, What::Taken, 2, 9));
    let Checked { verdict, handed_over } =
        check(&Check { folder: folder.path().to_owned(), lives: vec![2, 3] }).unwrap();
    assert_eq!(verdict, Verdict { accepted: 1, acked: 1, delivered: 1, ..Verdict::default() });
    assert_eq!(handed_over, [1, 0], "by the last life of each");
}
