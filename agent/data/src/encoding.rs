//! Guesses the encoding of a text that is not UTF-8, from its bytes.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{EUC_JP, EUC_KR, Encoding, SHIFT_JIS, UTF_16BE, UTF_16LE};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Maximum number of bytes of a file that a guess reads.
const MOST_BYTES: u64 = 32 << 20;
const BUFFER_BYTES: usize = 64 << 10;

/// An encoding that a text probably has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guess {
    /// Name of the encoding for `iconv -f`.
    name: &'static str,
    /// Decoder; `None` for UTF-32, for which there is none here.
    encoding: Option<&'static Encoding>,
}

impl fmt::Display for Guess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        let known_as = match self.name {
            "CP932" => "Shift_JIS, Japanese Windows",
            "CP949" => "EUC-KR, Korean Windows",
            "CP1252" => "Western Windows",
            "CP1250" => "Central European Windows",
            "CP1251" => "Cyrillic Windows",
            "GB18030" => "GBK, Chinese Windows",
            "UTF-16" | "UTF-16LE" | "UTF-16BE" => "Windows' \"Unicode text\"",
            _ => return Ok(()),
        };
        write!(f, " ({known_as})")
    }
}

impl Guess {
    /// Guesses the encoding of a text that is not UTF-8.
    #[must_use]
    pub fn from_text(text: &[u8]) -> Option<Self> {
        if let Some(guess) = Self::wide(text) {
            return Some(guess);
        }
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
        detector.feed(text, true);
        Some(Self::detected(&detector, text))
    }

    /// Guesses the encoding of the file at `path`, which is not UTF-8. Returns `None` if it cannot be read.
    #[must_use]
    pub fn from_file(path: &Path) -> Option<Self> {
        let mut file = File::open(path).ok()?.take(MOST_BYTES);
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
        let (mut buffer, mut foreign) = (vec![0; BUFFER_BYTES], Vec::new());
        loop {
            let length = file.read(&mut buffer).ok()?;
            let read = &buffer[..length];
            detector.feed(read, length == 0);
            if length == 0 {
                return Some(Self::wide(&foreign).unwrap_or_else(|| Self::detected(&detector, &foreign)));
            }
            // The lines from the first one with a foreign character on tell a script.
            if foreign.len() < BUFFER_BYTES && (!foreign.is_empty() || !read.is_ascii()) {
                let begin = read.iter().position(|byte| !byte.is_ascii()).filter(|_| foreign.is_empty()).unwrap_or(0);
                foreign.extend_from_slice(&read[begin..]);
            }
        }
    }

    /// Recognises UTF-16 and UTF-32 by the mark at the start or, without one, by the zeros beside the ASCII characters.
    #[must_use]
    pub fn wide(start: &[u8]) -> Option<Self> {
        /// Without a byte order mark, at least one character in this many must be ASCII.
        const FEWEST: usize = 16;
        match start {
            [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some(Self { name: "UTF-32", encoding: None }),
            [0xff, 0xfe, ..] => return Some(Self { name: "UTF-16", encoding: Some(UTF_16LE) }),
            [0xfe, 0xff, ..] => return Some(Self { name: "UTF-16", encoding: Some(UTF_16BE) }),
            _ => {}
        }
        let (pairs, _) = start.as_chunks::<2>();
        let high_first = pairs.iter().filter(|[high, low]| *high == 0 && *low != 0).count();
        let low_first = pairs.iter().filter(|[low, high]| *high == 0 && *low != 0).count();
        let least = (pairs.len() / FEWEST).max(4);
        let mostly = |some: usize, others: usize| some >= least && some / FEWEST >= others;
        if mostly(low_first, high_first) {
            return Some(Self { name: "UTF-16LE", encoding: Some(UTF_16LE) });
        }
        mostly(high_first, low_first).then_some(Self { name: "UTF-16BE", encoding: Some(UTF_16BE) })
    }

    /// Returns the detector's guess. The detector is better at whole pages than at short tables. Its guess is therefore not used
    /// if `text` is plain Japanese or Korean in one of their encodings.
    fn detected(detector: &EncodingDetector, text: &[u8]) -> Self {
        let encoding = eastern(text).unwrap_or_else(|| detector.guess(None, Utf8Detection::Deny));
        let name = match encoding.name() {
            "Shift_JIS" => "CP932",
            "EUC-KR" => "CP949",
            "GBK" | "gb18030" => "GB18030",
            "Big5" => "BIG5-HKSCS",
            "windows-874" => "CP874",
            "windows-1250" => "CP1250",
            "windows-1251" => "CP1251",
            "windows-1252" => "CP1252",
            "windows-1253" => "CP1253",
            "windows-1254" => "CP1254",
            "windows-1255" => "CP1255",
            "windows-1256" => "CP1256",
            "windows-1257" => "CP1257",
            "windows-1258" => "CP1258",
            "ISO-8859-8-I" => "ISO-8859-8",
            "IBM866" => "CP866",
            name => name,
        };
        Self { name, encoding: Some(encoding) }
    }

    /// Returns the text, or `None` if the bytes do not have this encoding.
    #[must_use]
    pub fn decode(self, text: &[u8]) -> Option<String> {
        let (decoded, faulty) = self.encoding?.decode_with_bom_removal(text);
        (!faulty).then(|| decoded.into_owned())
    }

    /// Finds an encoding by one of its names, such as `cp932`, `latin1` or `UTF-16LE`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let label = match lower.as_str() {
            "cp932" => "shift_jis",
            "cp949" => "euc-kr",
            "cp936" => "gbk",
            "cp950" => "big5",
            label => label,
        };
        let encoding = Encoding::for_label(label.as_bytes())?;
        Some(Self { name: encoding.name(), encoding: Some(encoding) })
    }

    /// Returns the encoding's name for `iconv -f`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// Returns the encoding in which `text` is Japanese with kana, or Korean in Hangul, and has no other character besides ASCII.
fn eastern(text: &[u8]) -> Option<&'static Encoding> {
    let kana = |letter: char| matches!(letter, '\u{3041}'..='\u{30ff}');
    let japanese = |letter: char| {
        kana(letter) || matches!(letter, '\u{3000}'..='\u{303f}' | '\u{4e00}'..='\u{9fff}' | '\u{ff01}'..='\u{ff5e}')
    };
    let hangul = |letter: char| matches!(letter, '\u{ac00}'..='\u{d7a3}');
    let letters = |encoding: &'static Encoding| {
        let decoded = encoding.decode_without_bom_handling_and_without_replacement(text)?;
        Some(decoded.chars().filter(|letter| !letter.is_ascii()).collect::<Vec<_>>())
    };
    let is_japanese = |encoding: &&'static Encoding| {
        letters(encoding)
            .is_some_and(|found| found.iter().any(|&letter| kana(letter)) && found.into_iter().all(japanese))
    };
    let is_korean = |encoding: &&'static Encoding| {
        letters(encoding).is_some_and(|found| !found.is_empty() && found.into_iter().all(hangul))
    };
    [SHIFT_JIS, EUC_JP].into_iter().find(is_japanese).or_else(|| Some(EUC_KR).filter(is_korean))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use encoding_rs::{BIG5, GB18030, ISO_8859_2, KOI8_U, WINDOWS_1251, WINDOWS_1252};

    fn wide(text: &str, low_first: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if low_first { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
    }

    #[test]
    fn short_tables_of_many_languages_are_recognised_and_converted() {
        for (encoding, name, text) in [
            (SHIFT_JIS, "CP932", "label,text\r\n良い,とても良い天気です\r\n悪い,今日は雨が降っている\r\n"),
            (EUC_JP, "EUC-JP", "label,text\n良い,とても良い天気です\n悪い,今日は雨が降っている\n"),
            (EUC_KR, "CP949", "label,text\r\n긍정,정말 재미있는 영화였습니다\r\n부정,시간이 아까웠어요\r\n"),
            (GB18030, "GB18030", "label,text\r\n好,这家餐厅的服务非常好\r\n差,房间太小而且很吵\r\n"),
            (BIG5, "BIG5-HKSCS", "label,text\r\n好,這家餐廳的服務非常好\r\n差,房間太小而且很吵\r\n"),
            (WINDOWS_1252, "CP1252", "label,text\r\nham,Der Kaffee in München kostet £5\r\nspam,Déjà vu à l'hôtel\r\n"),
            (WINDOWS_1251, "CP1251", "label,text\r\nхорошо,Очень хороший фильм\r\nплохо,Скучно и слишком долго\r\n"),
            (KOI8_U, "KOI8-U", "label,text\nхорошо,Очень хороший фильм\nплохо,Скучно и слишком долго\n"),
            (
                ISO_8859_2,
                "ISO-8859-2",
                "label;text\ndobry;Bardzo dobra książka, świetnie się czyta\nzły;Strasznie nudna, żal pieniędzy\n",
            ),
        ] {
            let (bytes, _, unmappable) = encoding.encode(text);
            assert!(!unmappable);
            let guess = Guess::from_text(&bytes).unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            assert_eq!(Guess::from_file(file.path()), Some(guess));
            assert_eq!((guess.name(), guess.decode(&bytes).as_deref()), (name, Some(text)), "{text}");
        }
    }

    #[test]
    fn wide_texts_are_recognised_with_and_without_a_mark() {
        let text = "label,text\npos,良い天気です\n";
        for (bytes, name) in [
            (wide(&format!("\u{feff}{text}"), true), "UTF-16"),
            (wide(&format!("\u{feff}{text}"), false), "UTF-16"),
            (wide(text, true), "UTF-16LE"),
            (wide(text, false), "UTF-16BE"),
        ] {
            let guess = Guess::from_text(&bytes).unwrap();
            assert_eq!((guess.name(), guess.decode(&bytes).as_deref()), (name, Some(text)));
        }
        assert_eq!(Guess::wide("label,text\npos,x\0y\n".as_bytes()), None);
        assert_eq!(Guess::wide(b""), None);
    }

    #[test]
    fn encodings_are_found_by_their_usual_names() {
        for name in ["cp932", "Shift_JIS", "latin1", "windows-1252", "CP1252", "cp949", "GBK", "utf-16le", "koi8-r"] {
            assert!(Guess::named(name).is_some(), "{name}");
        }
        assert_eq!(Guess::named("klingon"), None);
    }
}
