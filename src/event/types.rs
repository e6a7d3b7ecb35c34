//! The interaction types that are accepted, and what each says about liking.

/// Which of the configured [`InteractionTypes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u16);

/// Types and weights, as configured: `complete:5,share:4,…`.
#[derive(Debug, Clone, PartialEq)]
pub struct InteractionTypes {
    types: Vec<(Box<str>, f32)>,
}

const DEFAULT_TEXT: &str = "complete:5,share:4,comment:4,like:3,follow:3,view:1,skip:-1";

/// The lookup is linear; a name ends in every row and every file.
const TYPES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;

impl InteractionTypes {
    /// Reads `name:weight` pairs, separated by commas. Names are stored in lower case.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut types: Vec<(Box<str>, f32)> = Vec::new();
        for pair in text.split(',') {
            let (name, weight) =
                pair.split_once(':').ok_or_else(|| format!("`{}` is not name:weight", pair.trim()))?;
            let name = checked_name(name.trim())?;
            let weight: f32 = match weight.trim().parse() {
                Ok(weight) if f32::is_finite(weight) => weight,
                _ => return Err(format!("the weight of `{name}` is not a finite number")),
            };
            if types.iter().any(|(known, _)| *known == name) {
                return Err(format!("`{name}` stands there twice"));
            }
            types.push((name, weight));
        }
        if types.len() > TYPES_MAX {
            return Err(format!("{} types, at most {TYPES_MAX}", types.len()));
        }
        Ok(Self { types })
    }

    pub const fn default_text() -> &'static str {
        DEFAULT_TEXT
    }

    /// ASCII case is ignored.
    pub fn lookup(&self, name: &str) -> Option<TypeId> {
        let names = || self.types.iter().map(|(known, _)| &**known);
        // Most clients send it in lower case, as it stands here.
        let index = names()
            .position(|known| known == name)
            .or_else(|| names().position(|known| known.eq_ignore_ascii_case(name)))?;
        u16::try_from(index).ok().map(TypeId)
    }

    /// In lower case. An id of other `InteractionTypes` may have no name here, and is then empty.
    pub fn name(&self, id: TypeId) -> &str {
        self.types.get(usize::from(id.0)).map_or("", |(name, _)| name)
    }

    pub fn weight(&self, id: TypeId) -> f32 {
        self.types.get(usize::from(id.0)).map_or(0.0, |(_, weight)| *weight)
    }

    /// Names and weights in the configured order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f32)> {
        self.types.iter().map(|(name, weight)| (&**name, *weight))
    }
}

fn checked_name(name: &str) -> Result<Box<str>, String> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits {
        Ok(name.to_ascii_lowercase().into())
    } else {
        Err(format!(
            "`{name}` is no name of an interaction type (1-{NAME_BYTES_MAX} letters, digits, `_` or `-`)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_text_is_valid_and_lookup_ignores_case() {
        let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
        let id = types.lookup("CoMPLete").unwrap();
        assert_eq!(types.name(id), "complete");
        assert_eq!(types.weight(id), 5.0);
        assert_eq!(types.lookup("completed"), None);
        assert_eq!(types.lookup(""), None);
        assert_eq!(types.iter().count(), 7);
    }

    #[test]
    fn names_are_stored_in_lower_case_and_spaces_do_not_matter() {
        let types = InteractionTypes::parse(" Watch : 0.5 , SKIP:-1").unwrap();
        assert_eq!(types.iter().collect::<Vec<_>>(), [("watch", 0.5), ("skip", -1.0)]);
    }

    #[test]
    fn a_bad_configuration_says_what_is_wrong() {
        for (text, part) in [
            ("", "is not name:weight"),
            ("view", "is not name:weight"),
            ("view:", "finite"),
            ("view:NaN", "finite"),
            ("view:inf", "finite"),
            (":1", "no name"),
            ("vi ew:1", "no name"),
            ("view:1,VIEW:2", "twice"),
            ("view:1,", "is not name:weight"),
        ] {
            let error = InteractionTypes::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
