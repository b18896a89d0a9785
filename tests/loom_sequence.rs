//! Under every interleaving, sequence numbers are unique, without gap, and rise
//! within each thread.
#![cfg(loom)]

use ironbus::engine::sequence::Sequencer;
use loom::sync::Arc;
use loom::thread;

#[test]
fn numbers_are_unique_without_gap_and_rise_in_each_thread() {
    loom::model(|| {
        let sequencer = Arc::new(Sequencer::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let sequencer = Arc::clone(&sequencer);
                thread::spawn(move || [sequencer.next(), sequencer.next()])
            })
            .collect();
        let mut given = vec![sequencer.next()];
        assert!(
            sequencer.last() >= given[0],
            "last() lags behind a number this thread was given"
        );
        for thread in threads {
            let [first, second] = thread.join().unwrap();
            assert!(first < second, "numbers fell within one thread");
            given.extend([first, second]);
        }
        given.sort_unstable();
        assert_eq!(given, [1, 2, 3, 4, 5]);
        assert_eq!(sequencer.last(), 5);
    });
}
