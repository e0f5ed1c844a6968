//! What a line may hold.

use std::io::{self, Write};

use super::Format;

/// Makes an event one line of visible characters, whatever is in it: ids hold any character, and none of them may forge
/// a line or talk to the terminal. Each write is a whole event.
pub(super) struct OneLine<W> {
    pub(super) output: W,
    /// Whether events hold colours of our own; then escape characters stay.
    pub(super) colour: bool,
    /// JSON knows one way to write any character.
    pub(super) format: Format,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if !line.iter().any(|byte| byte.is_ascii_control() || !byte.is_ascii()) {
            self.output.write_all(event)?;
            return Ok(event.len());
        }
        let mut escaped = String::with_capacity(event.len() + 16);
        for character in String::from_utf8_lossy(line).chars() {
            match (character, self.format) {
                ('\x1b', _) if self.colour => escaped.push(character),
                (fit, _) if is_fit(fit) => escaped.push(fit),
                (unfit, Format::Json) => escaped.extend([format!("\\u{:04x}", u32::from(unfit))]),
                (unfit, Format::Text) if unfit.is_ascii() => {
                    escaped.extend((unfit as u8).escape_ascii().map(char::from))
                }
                (unfit, Format::Text) => escaped.extend(unfit.escape_unicode()),
            }
        }
        escaped.push('\n');
        self.output.write_all(escaped.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Whether a character may be shown as it is: neither a control character nor one that ends a line or turns the direction of
/// what follows. Those that are not have at most four hexadecimal digits.
#[must_use]
pub fn is_fit(character: char) -> bool {
    match character {
        '\t' => true,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        _ => !character.is_control(),
    }
}
