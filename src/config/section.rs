//! One declaration per key: its type, default and meaning. The structs, their defaults and the table
//! in `docs/configuration.md` all come from it, so that none can say something else than the others.

/// A key as the documentation shows it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.name`
    pub path: &'static str,
    /// The doc comment of the field.
    pub about: &'static str,
    /// Its type as it is declared, `Option<String>` for instance.
    pub kind: &'static str,
}

/// A section of the configuration as the documentation shows it.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    pub name: &'static str,
    pub about: &'static str,
    pub keys: &'static [Key],
}

macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $struct:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, serde::Deserialize, serde::Serialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $struct {
                $( $(#[doc = $doc])+ pub $field: $type, )+
            }

            impl Default for $struct {
                fn default() -> Self {
                    Self { $( $field: $default, )+ }
                }
            }
        )+

        /// Everything that can be configured.
        #[derive(Debug, Clone, Default, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $( $(#[doc = $about])+ pub $section: $struct, )+
        }

        /// Every section with every key, in order of declaration.
        pub const SECTIONS: &[Section] = &[ $( Section {
            name: stringify!($section),
            about: concat!($($about),+),
            keys: &[ $( Key {
                path: concat!(stringify!($section), ".", stringify!($field)),
                about: concat!($($doc),+),
                kind: stringify!($type),
            } ),+ ],
        } ),+ ];
    };
}
pub(super) use sections;
