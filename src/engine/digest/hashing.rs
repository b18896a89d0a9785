//! SHA-256 of a text while it is being written. Each step of the hash needs the result of the one
//! before it, and leaves most of the processor idle; a block that is hashed as soon as it is full
//! is hashed beside the writing of the next.

use sha2::block_api::compress256;

use super::{Digest, write_start};

const BLOCK: usize = 64;

/// See the module.
pub struct Hashing {
    state: [u32; 8],
    /// So many bytes of the text are hashed.
    done: usize,
}

impl Default for Hashing {
    #[inline]
    fn default() -> Self {
        Self {
            // FIPS 180-4, section 5.3.3.
            state: [
                0x6A09_E667,
                0xBB67_AE85,
                0x3C6E_F372,
                0xA54F_F53A,
                0x510E_527F,
                0x9B05_688C,
                0x1F83_D9AB,
                0x5BE0_CD19,
            ],
            done: 0,
        }
    }
}

impl Hashing {
    /// Hashes the blocks of the text that have become full. The text has only grown.
    #[inline(always)]
    pub fn advance(&mut self, text: &[u8]) {
        if text.len() - self.done >= BLOCK {
            self.hash_blocks(text);
        }
    }

    #[inline(never)]
    fn hash_blocks(&mut self, text: &[u8]) {
        let blocks = text[self.done..].as_chunks().0;
        compress256(&mut self.state, blocks);
        self.done += blocks.len() * BLOCK;
    }

    /// Hashes the rest. The text is padded for that, and as it was afterwards.
    #[inline]
    pub fn finish(mut self, text: &mut Vec<u8>) -> Digest {
        const PADDING: [u8; BLOCK] = {
            let mut padding = [0; BLOCK];
            padding[0] = 0x80;
            padding
        };
        let length = text.len();
        write_start(text, &PADDING, BLOCK - (length + 8) % BLOCK);
        text.extend_from_slice(&(8 * length as u64).to_be_bytes());
        self.hash_blocks(text);
        text.truncate(length);
        let mut digest = [0; 32];
        let words = digest.as_chunks_mut().0.iter_mut().zip(self.state);
        words.for_each(|(bytes, word)| *bytes = word.to_be_bytes());
        Digest(digest)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Of every length around the ends of blocks, in whatever pieces it comes.
        #[test]
        fn it_is_the_hash_of_the_whole(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..150), 0..6)) {
            let (mut text, mut hashing) = (Vec::new(), Hashing::default());
            for piece in &pieces {
                text.extend_from_slice(piece);
                hashing.advance(&text);
            }
            prop_assert_eq!(hashing.finish(&mut text), Digest::of(&text));
            prop_assert_eq!(text, pieces.concat());
        }
    }
}
