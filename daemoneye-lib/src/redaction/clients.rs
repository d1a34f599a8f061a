//! Programs known to take a secret behind a short option.

/// How a program takes secrets in its arguments.
#[derive(Clone, Copy)]
pub(super) struct Client {
    programs: &'static [&'static str],
    /// Short options whose value is a secret.
    pub(super) secret: &'static [(u8, Form)],
    /// Short options that take another value.
    pub(super) valued: &'static [u8],
    /// The rules end where a program to be run is named.
    pub(super) runs_another: bool,
    /// The rules begin after this word.
    pub(super) after: Option<&'static [u8]>,
    /// A word that names a secret, without a dash, is followed by it.
    pub(super) bare_names: bool,
    /// A word of this form is a secret by itself.
    pub(super) operand: Option<Operand>,
}

/// What of a short option's value is secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// All of it, in the same word or the next.
    Value,
    /// All of it, and only in the same word: alone the option asks for the secret.
    Attached,
    /// All of it, in the next word: the option begins the names of others.
    Alone,
    /// What follows this byte.
    After(u8),
}

/// A secret in a word that is no option.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// `user/pass@database`.
    Slash,
    /// `/p:pass`.
    SlashP,
}

const PLAIN: Client = Client {
    programs: &[],
    secret: &[],
    valued: b"",
    runs_another: false,
    after: None,
    bare_names: false,
    operand: None,
};

const LOGIN: Client =
    Client { secret: &[(b'p', Form::Value)], valued: b"u", after: Some(b"login"), ..PLAIN };

const CLIENTS: &[Client] = &[
    Client {
        programs: &[
            "mysql",
            "mysqldump",
            "mysqladmin",
            "mysqlimport",
            "mysqlshow",
            "mysqlcheck",
            "mysqlslap",
            "mysqlpump",
            "mysqlbinlog",
            "mysqlsh",
            "mycli",
            "mysql_upgrade",
        ],
        secret: &[(b'p', Form::Attached)],
        valued: b"DehPSu#",
        ..PLAIN
    },
    Client {
        programs: &["sshpass"],
        secret: &[(b'p', Form::Value)],
        valued: b"fdP",
        runs_another: true,
        ..PLAIN
    },
    Client {
        programs: &["curl"],
        secret: &[(b'u', Form::After(b':')), (b'U', Form::After(b':')), (b'E', Form::After(b':'))],
        valued: b"AbcCdDeFHKmoPQrtTwxXyYz",
        ..PLAIN
    },
    Client {
        programs: &["http", "https", "xh", "xhs"],
        secret: &[(b'a', Form::After(b':'))],
        valued: b"Aos",
        ..PLAIN
    },
    Client {
        programs: &["smbclient", "rpcclient", "smbget", "net", "smbcacls"],
        secret: &[(b'U', Form::After(b'%'))],
        valued: b"cDIpWn",
        ..PLAIN
    },
    Client {
        programs: &[
            "ldapsearch",
            "ldapadd",
            "ldapmodify",
            "ldapdelete",
            "ldapwhoami",
            "ldapcompare",
            "ldapmodrdn",
        ],
        secret: &[(b'w', Form::Value)],
        valued: b"bDfhHlpsSyYzaoOIRUXeEdFPTVt",
        ..PLAIN
    },
    Client {
        programs: &["ldappasswd"],
        secret: &[(b'w', Form::Value), (b's', Form::Value), (b'a', Form::Value)],
        valued: b"DHhpyY",
        ..PLAIN
    },
    Client {
        programs: &["redis-cli", "valkey-cli", "keydb-cli"],
        secret: &[(b'a', Form::Value)],
        valued: b"hpsunrid",
        ..PLAIN
    },
    Client {
        programs: &[
            "mongo",
            "mongosh",
            "mongodump",
            "mongorestore",
            "mongoexport",
            "mongoimport",
            "mongostat",
            "mongotop",
            "rdesktop",
            "ncftp",
            "ncftpget",
            "ncftpput",
            "useradd",
            "usermod",
        ],
        secret: &[(b'p', Form::Value)],
        valued: b"uhdcqfo",
        ..PLAIN
    },
    Client {
        programs: &[
            "sqlcmd",
            "bcp",
            "osql",
            "isql",
            "tsql",
            "ipmitool",
            "mosquitto_pub",
            "mosquitto_sub",
            "mosquitto_rr",
            "zip",
            "unzip",
            "zipcloak",
        ],
        secret: &[(b'P', Form::Value)],
        valued: b"SUdHhupt",
        ..PLAIN
    },
    Client {
        programs: &["7z", "7za", "7zr", "7zz", "rar", "unrar"],
        secret: &[(b'p', Form::Attached)],
        valued: b"omtwix",
        ..PLAIN
    },
    Client {
        programs: &[
            "snmpget",
            "snmpwalk",
            "snmpset",
            "snmpbulkget",
            "snmpbulkwalk",
            "snmpgetnext",
            "snmptrap",
            "snmptable",
        ],
        secret: &[(b'A', Form::Value), (b'X', Form::Value), (b'c', Form::Value)],
        valued: b"vlauxnrtOmMLe",
        ..PLAIN
    },
    Client { programs: &["openssl"], secret: &[(b'k', Form::Alone), (b'K', Form::Alone)], ..PLAIN },
    Client { programs: &["lftp"], secret: &[(b'u', Form::After(b','))], valued: b"pefc", ..PLAIN },
    Client {
        programs: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "az", "oc", "cf"],
        ..LOGIN
    },
    Client {
        programs: &["sqlplus", "sqlldr", "expdp", "impdp", "rman"],
        operand: Some(Operand::Slash),
        ..PLAIN
    },
    Client {
        programs: &["xfreerdp", "xfreerdp3", "wlfreerdp"],
        operand: Some(Operand::SlashP),
        ..PLAIN
    },
    Client {
        programs: &["nmcli", "aws", "git", "npm", "pnpm", "yarn", "gcloud"],
        bare_names: true,
        ..PLAIN
    },
];

impl Client {
    /// How the program that a word names takes secrets, if it is known to.
    pub(super) fn named(word: &[u8]) -> Option<&'static Self> {
        let from = word.iter().rposition(|byte| matches!(byte, b'/' | b'\\' | b'='));
        let base = &word[from.map_or(0, |at| at + 1)..];
        let base = base.strip_suffix(b".exe").unwrap_or(base);
        if base.starts_with(b"mariadb") {
            return CLIENTS.first();
        }
        CLIENTS
            .iter()
            .find(|client| client.programs.iter().any(|program| program.as_bytes() == base))
    }
}
