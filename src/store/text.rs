//! Texts of any character in engines whose text lacks one.
//!
//! PostgreSQL's text cannot hold U+0000. There it is written as U+0001 U+0001, and U+0001 as U+0001 U+0002: what is
//! written can be told apart again, and sorts by its bytes as the text itself does. All other texts, so all that anybody
//! is likely to meet, are written as they are.

use std::{borrow::Cow, fmt, ops::Deref};

use sqlx::{
    Decode, Postgres, Sqlite, Type,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueRef},
    sqlite::{SqliteTypeInfo, SqliteValueRef},
};

/// What U+0000 and U+0001 begin with where they are written.
const ESCAPE: char = '\u{1}';

/// A text of a row, as it was given: every text column is read as one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Text(String);

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Type<Sqlite> for Text {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }
}

impl<'r> Decode<'r, Sqlite> for Text {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        <String as Decode<Sqlite>>::decode(value).map(Self)
    }
}

impl Type<Postgres> for Text {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(ty)
    }
}

impl<'r> Decode<'r, Postgres> for Text {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        from_postgres(<&str as Decode<Postgres>>::decode(value)?).map(|text| Self(text.into_owned()))
    }
}

/// `text` as PostgreSQL can hold it.
pub(super) fn to_postgres(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut written = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => written.extend([ESCAPE, '\u{1}']),
            ESCAPE => written.extend([ESCAPE, '\u{2}']),
            other => written.push(other),
        }
    }
    Cow::Owned(written)
}

/// The text that was written as `written`; an error for what [`to_postgres`] cannot have written.
fn from_postgres(written: &str) -> Result<Cow<'_, str>, BoxDynError> {
    if !written.contains(ESCAPE) {
        return Ok(Cow::Borrowed(written));
    }
    let mut text = String::with_capacity(written.len());
    let mut characters = written.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            ESCAPE => match characters.next() {
                Some('\u{1}') => '\0',
                Some('\u{2}') => ESCAPE,
                _ => return Err("a text has U+0001 in it that Harbor cannot have written".into()),
            },
            other => other,
        });
    }
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Short texts, among which those with the characters that matter are frequent.
    fn text() -> impl Strategy<Value = String> {
        let character = prop_oneof![Just('\0'), Just('\u{1}'), Just('\u{2}'), Just('a'), any::<char>()];
        prop::collection::vec(character, 0..8).prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_text_is_read_back_as_it_was_written_and_holds_no_zero(text in text()) {
            let written = to_postgres(&text);
            prop_assert!(!written.contains('\0'));
            prop_assert_eq!(from_postgres(&written).unwrap(), &*text);
        }

        #[test]
        fn texts_sort_as_they_are_written(one in text(), other in text()) {
            prop_assert_eq!(to_postgres(&one).as_bytes().cmp(to_postgres(&other).as_bytes()), one.cmp(&other));
        }
    }

    #[test]
    fn what_was_not_written_here_is_refused() {
        for written in ["\u{1}", "a\u{1}", "\u{1}a", "\u{1}\u{3}"] {
            assert!(from_postgres(written).is_err(), "{written:?}");
        }
    }
}
