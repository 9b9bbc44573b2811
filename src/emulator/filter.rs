//! The part of [AIP-160](https://google.aip.dev/160)'s filter language that lists understand.

use tonic::Status;

use crate::proto::Operation;

/// What a list is to hold: terms that all must hold true.
pub(super) struct Filter<'a>(Vec<Term<'a>>);

impl<'a> Filter<'a> {
    /// Reads `done=true AND name="projects/p/*"` and the like: the terms `done` with `true` or
    /// `false`, and `name` with a name, or with the start of one and a `*`; `=` or `:` between,
    /// joined by `AND`. Quotes are needed around blanks only.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` names the part that is none of it.
    pub(super) fn parse(text: &'a str) -> Result<Self, Status> {
        if text.trim().is_empty() {
            return Ok(Self(Vec::new()));
        }
        let terms = split(text).into_iter().map(|part| {
            term(part.trim()).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "filter: no meaning in {:?}; known are done=true, done=false, name=\"..\" \
                     and name=\"..*\", joined by AND",
                    part.trim()
                ))
            })
        });
        terms.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn matches(&self, operation: &Operation) -> bool {
        self.0.iter().all(|term| match term {
            Term::Done(done) => operation.done == *done,
            Term::Name(name) => operation.name == *name,
            Term::NameStart(start) => operation.name.starts_with(start),
        })
    }
}

enum Term<'a> {
    Done(bool),
    Name(&'a str),
    NameStart(&'a str),
}

fn term(part: &str) -> Option<Term<'_>> {
    let (field, value) = part.split_once(['=', ':'])?;
    let value = unquote(value.trim())?;
    match (field.trim(), value) {
        ("done", "true") => Some(Term::Done(true)),
        ("done", "false") => Some(Term::Done(false)),
        ("name", value) => match value.strip_suffix('*').unwrap_or(value) {
            inner if inner.contains('*') => None,
            inner if inner.len() < value.len() => Some(Term::NameStart(inner)),
            inner => Some(Term::Name(inner)),
        },
        _ => None,
    }
}

/// Takes the quotes off a value; one without quotes is a single word.
fn unquote(value: &str) -> Option<&str> {
    let quoted = value.strip_prefix('"');
    let Some(quoted) = quoted else {
        let word = !value.is_empty() && !value.contains(['"', '=', ':', '(', ')', ' ']);
        return word.then_some(value);
    };
    let inner = quoted.strip_suffix('"')?;
    (!inner.contains('"')).then_some(inner)
}

/// Splits at each ` AND ` that stands in no quotes.
fn split(text: &str) -> Vec<&str> {
    const AND: &str = " AND ";
    let mut parts = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        if c == '"' {
            quoted = !quoted;
        } else if !quoted && at >= start && text[at..].starts_with(AND) {
            parts.push(&text[start..at]);
            start = at + AND.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(filter: &str, name: &str, done: bool) -> bool {
        let operation = Operation {
            name: name.to_owned(),
            done,
            ..Operation::default()
        };
        let filter = Filter::parse(filter).expect("it is a filter");
        filter.matches(&operation)
    }

    #[test]
    fn an_empty_filter_lists_all() {
        assert!(lists("", "operations/1", false));
        assert!(lists("  ", "operations/1", true));
    }

    #[test]
    fn done_and_name_are_understood_with_and_without_quotes() {
        for filter in ["done=true", "done : true", " done = \"true\" "] {
            assert!(lists(filter, "operations/1", true), "{filter}");
            assert!(!lists(filter, "operations/1", false), "{filter}");
        }
        for filter in ["name=a/1", "name:\"a/1\"", "name=a/*", "name = \"a/*\""] {
            assert!(lists(filter, "a/1", false), "{filter}");
            assert!(!lists(filter, "b/1", false), "{filter}");
        }
        assert!(!lists("name=a/1", "a/12", false));
        assert!(lists("name=*", "a/12", false));
    }

    #[test]
    fn and_joins_and_is_mere_text_in_quotes() {
        let filter = "done=false AND name=\"a AND b*\" AND name=\"a AND bc\"";
        assert!(lists(filter, "a AND bc", false));
        assert!(!lists(filter, "a AND bc", true));
        assert!(!lists(filter, "a AND bd", false));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (filter, part) in [
            ("done", "done"),
            ("done=maybe", "done=maybe"),
            ("done=true AND colour=red", "colour=red"),
            ("done=true OR name=a", "done=true OR name=a"),
            ("NOT done=true", "NOT done=true"),
            ("name!=a", "name!=a"),
            ("done==true", "done==true"),
            ("name=a*b*", "name=a*b*"),
            ("name=", "name="),
            ("done=true AND ", ""),
            ("name=\"a", "name=\"a"),
            ("(done=true)", "(done=true)"),
            ("name=ä AND €=é", "€=é"),
        ] {
            let Err(status) = Filter::parse(filter) else {
                panic!("{filter} was understood");
            };
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            let named = format!("no meaning in {part:?};");
            assert!(status.message().contains(&named), "{}", status.message());
        }
    }
}
