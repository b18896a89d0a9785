//! Under every interleaving of callers that take turns, sequence numbers are unique, without gap, and
//! rise within each thread. Without the turns they are not.
#![cfg(loom)]

use ironbus::engine::sequence::Sequencer;
use loom::sync::{Arc, Mutex};
use loom::thread;

fn given(in_turn: bool) -> Vec<[u64; 2]> {
    let shared = Arc::new((Mutex::new(()), Sequencer::default()));
    let pair = move |shared: &(Mutex<()>, Sequencer)| {
        std::array::from_fn(|_| {
            let _turn = in_turn.then(|| shared.0.lock().unwrap());
            shared.1.next_in_turn()
        })
    };
    let other = {
        let shared = shared.clone();
        thread::spawn(move || pair(&shared))
    };
    let mine = pair(&shared);
    vec![mine, other.join().unwrap()]
}

fn check(in_turn: bool) {
    loom::model(move || {
        let given = given(in_turn);
        assert!(given.iter().all(|[first, second]| first < second));
        let mut all = given.concat();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4]);
    });
}

#[test]
fn numbers_are_unique_without_gap_and_rise_in_each_thread() {
    check(true);
}

#[test]
#[should_panic(expected = "assertion")]
fn without_turns_they_are_not() {
    check(false);
}
