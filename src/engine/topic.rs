//! What a subscription listens to: one type, or a pattern over types.
//!
//! A text that contains `*` is a pattern with the rules of Python's
//! `fnmatch.fnmatchcase` over the whole type: `*` any text, `?` one character,
//! `[seq]` and `[!seq]` one character in or not in a set. Any other text is a type.

/// A type, or a pattern over types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    text: Box<str>,
    pattern: Option<Vec<Token>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Token {
    Any,
    One,
    Literal(char),
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Topic {
    /// Reads a topic; every text is one.
    pub fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            pattern: text.contains('*').then(|| tokens(text)),
        }
    }

    /// The text as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is a pattern, which must be matched, and not a type, which is looked up.
    pub fn is_pattern(&self) -> bool {
        self.pattern.is_some()
    }

    /// Whether an event of this type is meant.
    pub fn matches(&self, event_type: &str) -> bool {
        match &self.pattern {
            None => *self.text == *event_type,
            Some(tokens) => glob(tokens, &event_type.chars().collect::<Vec<_>>()),
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::with_capacity(chars.len());
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        match c {
            '*' if tokens.last() == Some(&Token::Any) => {}
            '*' => tokens.push(Token::Any),
            '?' => tokens.push(Token::One),
            '[' => match set(&chars, at) {
                Some((token, after)) => {
                    tokens.push(token);
                    at = after;
                }
                // A bracket that is never closed stands for itself, as in fnmatch.
                None => tokens.push(Token::Literal('[')),
            },
            c => tokens.push(Token::Literal(c)),
        }
    }
    tokens
}

/// A set that begins after the bracket at `start - 1`, and where the text goes on.
fn set(chars: &[char], start: usize) -> Option<(Token, usize)> {
    let negated = chars.get(start) == Some(&'!');
    let first = start + usize::from(negated);
    // A `]` right at the beginning belongs to the set.
    let close = (first + 1..chars.len()).find(|&at| chars[at] == ']')?;
    let body = &chars[first..close];
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < body.len() {
        if at + 2 < body.len() && body[at + 1] == '-' {
            // An upside-down range is empty, as in fnmatch.
            if body[at] <= body[at + 2] {
                ranges.push((body[at], body[at + 2]));
            }
            at += 3;
        } else {
            ranges.push((body[at], body[at]));
            at += 1;
        }
    }
    Some((Token::Set { negated, ranges }, close + 1))
}

fn one(token: &Token, c: char) -> bool {
    match token {
        Token::Any => false,
        Token::One => true,
        Token::Literal(literal) => *literal == c,
        Token::Set { negated, ranges } => {
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
        }
    }
}

/// Matches with one point of return, the last `*`: linear in space and at worst
/// quadratic in time, whatever the pattern.
fn glob(tokens: &[Token], chars: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < chars.len() {
        match tokens.get(token) {
            Some(Token::Any) => {
                star = Some((token, at));
                token += 1;
            }
            Some(other) if one(other, chars[at]) => {
                token += 1;
                at += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    token = after + 1;
                    at = from + 1;
                }
                None => return false,
            },
        }
    }
    tokens[token..].iter().all(|rest| *rest == Token::Any)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fnmatch_by_example() {
        for (pattern, event_type, expected) in [
            ("a.*", "a.b.c", true),
            ("a.*", "a.", true),
            ("a.*", "a", false),
            ("*", "", true),
            ("*.paid", "order.paid", true),
            ("*.paid", "order.paid.late", false),
            ("a?c*", "abc", true),
            ("a?c*", "ac", false),
            ("[ab]*", "b1", true),
            ("[!ab]*", "b1", false),
            ("[]x]*", "]", true),
            ("[*", "[abc", true),
            ("x[a-c]*", "xb", true),
            ("x[c-a]*", "xb", false),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "aba", false),
            ("a?c", "abc", false), // no `*`: a type, not a pattern
        ] {
            assert_eq!(
                Topic::new(pattern).matches(event_type),
                expected,
                "{pattern} {event_type}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_text_matches_itself_between_stars(text in "[a-z.:é ]{0,12}") {
            let pattern = format!("*{text}*");
            let longer = format!("x{text}y");
            prop_assert!(Topic::new(&pattern).matches(&longer));
        }
    }
}
