//! The token that operators show.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use subtle::ConstantTimeEq as _;

/// Random bytes of a token that is made here.
const TOKEN_BYTES: usize = 32;

/// Longest token that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// What operators show.
#[derive(Clone)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or made.
    #[error("cannot use {} for the admin token: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has nothing in it that could be a token.
    #[error("{} holds no token: write one line of visible characters into it, or remove it", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads the token of a file; makes both, mode 0600, when there is none.
    ///
    /// # Errors
    /// [`TokenError`], naming the file.
    pub fn load_or_make(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::File { path: path.into(), source };
        // Not opened before it is known to be one: a pipe would keep this process until somebody writes into it.
        let opened = fs::metadata(path).and_then(|metadata| match metadata.is_file() {
            true => fs::File::open(path),
            false => Err(io::Error::other("it is no regular file")),
        });
        match opened {
            Ok(file) => read(path, file).map_err(failed)?.ok_or_else(|| TokenError::NoToken { path: path.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether `presented` is this token, in a time that does not tell how much of it is right.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn read(path: &Path, file: fs::File) -> io::Result<Option<Token>> {
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let (path, mode) = (path.display(), format!("{mode:04o}"));
        tracing::warn!(%path, mode, "others may read the admin token: run chmod 0600 on it");
    }
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text)?;
    let text = text.trim();
    let is_token = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    Ok(is_token.then(|| Token(text.into())))
}

fn make(path: &Path) -> io::Result<Token> {
    let mut bytes = [0; TOKEN_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the machine gives no random numbers"))?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    // One that was left by a process that has died is of no use to anybody.
    let _ = fs::remove_file(&unfinished);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).and_then(|mut file| {
        writeln!(file, "{token}")?;
        file.sync_all()?;
        // Whole or not at all, and never in the place of another.
        fs::hard_link(&unfinished, path)
    });
    let _ = fs::remove_file(&unfinished);
    made.map(|()| Token(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.token");
        let made = Token::load_or_make(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 2 * TOKEN_BYTES + 1);
        assert!(made.matches(text.trim().as_bytes()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Token::load_or_make(&path).unwrap().matches(text.trim().as_bytes()));
        assert!(!made.matches(b"") && !made.matches(&text.as_bytes()[1..]));
        assert_eq!(format!("{made:?}"), "Token(…)");
    }

    #[test]
    fn a_file_that_holds_no_token_is_refused_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.token");
        let shown = |error: TokenError| error.to_string().replace(directory.path().to_str().unwrap(), "DIR");
        for text in ["", "\n", "two words", "tökén"] {
            fs::write(&path, text).unwrap();
            assert_eq!(
                shown(Token::load_or_make(&path).unwrap_err()),
                "DIR/admin.token holds no token: write one line of visible characters into it, or remove it"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for no_file in [&pipe, directory.path()] {
            assert_eq!(
                shown(Token::load_or_make(no_file).unwrap_err()).replace("/pipe", ""),
                "cannot use DIR for the admin token: it is no regular file"
            );
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing was left half made");
        assert_eq!(
            shown(Token::load_or_make(&directory.path().join("no/admin.token")).unwrap_err()),
            "cannot use DIR/no/admin.token for the admin token: No such file or directory (os error 2)"
        );
    }
}
