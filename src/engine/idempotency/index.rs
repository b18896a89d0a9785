//! Where keys stand in the log, by their hash. Many small tables instead of a large one: each
//! grows and shrinks at a time of its own, so that no publish waits until all keys have moved.

use hashbrown::HashTable;

#[cfg(not(loom))]
const TABLES: usize = 64;
#[cfg(loom)]
const TABLES: usize = 1;

/// A table with room for fewer is not worth shrinking.
const SMALL: usize = 64;

/// A table with fewer grows to four times its size, and not to twice, because most of its growing is
/// still to come: to move a key takes about as long as to add one.
const STEADY: usize = 4_096;

/// So many keys are asked for before they are needed.
const AHEAD: usize = 16;

/// See the module. Numbers whose hashes are evenly spread.
pub struct Index {
    tables: [HashTable<u32>; TABLES],
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            tables: std::array::from_fn(|_| HashTable::new()),
            len: 0,
        }
    }
}

impl Index {
    /// How many numbers it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number with this hash that is the one looked for.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let table = &self.tables[place(hash)];
        table.find(hash, |number| is_it(*number)).copied()
    }

    /// Adds a number that it does not hold. `rehash` gives the hash of any other, and `prefetch` asks for
    /// the memory that it will need for that.
    #[inline]
    pub fn insert(
        &mut self,
        hash: u64,
        number: u32,
        rehash: impl Fn(u32) -> u64,
        prefetch: impl Fn(u32),
    ) {
        let table = &mut self.tables[place(hash)];
        if table.len() == table.capacity() {
            *table = grown(table, &rehash, prefetch);
        }
        table.insert_unique(hash, number, |number| rehash(*number));
        self.len += 1;
    }

    /// Removes a number; false: it does not hold it.
    pub fn remove(&mut self, hash: u64, number: u32, rehash: impl Fn(u32) -> u64) -> bool {
        let table = &mut self.tables[place(hash)];
        let Ok(entry) = table.find_entry(hash, |other| *other == number) else {
            return false;
        };
        entry.remove();
        self.len -= 1;
        // Memory goes back after a burst has expired.
        if table.capacity() > SMALL && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |number| rehash(*number));
        }
        true
    }
}

/// A larger table with the same numbers. Their keys are spread over all the memory of the log; asked for in
/// advance, they come side by side and not one after the other.
#[inline(never)]
fn grown(
    table: &HashTable<u32>,
    rehash: impl Fn(u32) -> u64,
    prefetch: impl Fn(u32),
) -> HashTable<u32> {
    let times = if table.len() < STEADY { 4 } else { 2 };
    let mut larger = HashTable::with_capacity((times * table.len()).max(1));
    let mut ahead = table.iter();
    ahead
        .by_ref()
        .take(AHEAD)
        .for_each(|number| prefetch(*number));
    for &number in table {
        ahead.next().copied().map(&prefetch);
        larger.insert_unique(rehash(number), number, |number| rehash(*number));
    }
    larger
}

/// The table of a hash, by bits that a table itself does not look at.
#[inline]
fn place(hash: u64) -> usize {
    (hash >> 32) as usize % TABLES
}

#[cfg(all(test, not(loom)))]
impl Index {
    /// How many numbers it has memory for.
    pub fn capacity(&self) -> usize {
        self.tables.iter().map(HashTable::capacity).sum()
    }
}
