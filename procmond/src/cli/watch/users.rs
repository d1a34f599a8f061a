//! Names of users.

use std::collections::HashMap;

/// The users of this machine's own list; those of a directory service are shown as numbers.
pub(super) struct Users {
    names: HashMap<u32, String>,
}

impl Users {
    pub(super) fn load() -> Self {
        // Without the list there are numbers.
        Self::parse(&std::fs::read("/etc/passwd").unwrap_or_default())
    }

    pub(super) fn parse(passwd: &[u8]) -> Self {
        let mut names = HashMap::new();
        for line in passwd.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b':').map(std::str::from_utf8);
            if let (Some(Ok(name)), Some(Ok(uid))) = (fields.next(), fields.nth(1))
                && let Ok(uid) = uid.parse()
            {
                // The first name is the one that the system shows.
                names.entry(uid).or_insert_with(|| name.to_owned());
            }
        }
        Self { names }
    }

    pub(super) fn name(&self, uid: u32) -> String {
        self.names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}
