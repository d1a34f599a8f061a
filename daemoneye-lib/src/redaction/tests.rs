use proptest::prelude::*;

use super::*;

#[test]
fn arguments_that_are_cut_say_so_and_are_known_again() {
    let whole = RawArgv::from_args(["ls", "-l", "/tmp"]).redact();
    let mut cut = whole.clone();
    assert!(!cut.cut(11) && cut == whole, "it has eleven");
    assert!(!whole.is_cut_from(&whole), "nothing is missing");
    assert!(cut.cut(10) && cut.is_truncated());
    assert_eq!(cut.iter().collect::<Vec<_>>(), [&b"ls"[..], b"-l", b"/tm"]);
    assert!(cut.is_cut_from(&whole));
    assert!(!cut.is_cut_from(&RawArgv::from_args(["ls", "-l", "/opt"]).redact()));
    assert!(cut.cut(0) && cut.iter().all(<[u8]>::is_empty));
    assert!(!RawArgv::from_args(["ls"]).redact().is_cut_from(&whole), "other arguments");
}

const SECRET: &str = "hunter2S3cr3t";

fn redacted(args: &[&str]) -> Vec<String> {
    RawArgv::from_args(args)
        .redact()
        .iter()
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect()
}

/// Arguments with `@@` where the secret is, and what they must become with `##` for the mark.
#[track_caller]
fn check(args: &[&str], expected: &[&str]) {
    let args: Vec<String> = args.iter().map(|arg| arg.replace("@@", SECRET)).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let expected: Vec<String> = expected.iter().map(|arg| arg.replace("##", REDACTED)).collect();
    assert_eq!(redacted(&args), expected, "of {args:?}");
}

#[test]
fn secrets_are_removed_and_names_stay() {
    check(&["x", "--password", "@@"], &["x", "--password", "##"]);
    check(&["x", "--password=@@"], &["x", "--password=##"]);
    check(&["x", "--password=@@ with blank"], &["x", "--password=##"]);
    check(&["x", "-password", "@@", "y"], &["x", "-password", "##", "y"]);
    check(&["x", "--token", "@@"], &["x", "--token", "##"]);
    check(&["x", "--api-key", "@@"], &["x", "--api-key", "##"]);
    check(&["x", "--secret-key", "@@"], &["x", "--secret-key", "##"]);
    check(&["x", "--password", "-@@"], &["x", "--password", "##"]);
    check(&["keytool", "-storepass", "@@"], &["keytool", "-storepass", "##"]);
    check(&["java", "-Ddb.password=@@", "X"], &["java", "-Ddb.password=##", "X"]);
    check(&["env", "DB_PASSWORD=@@", "true"], &["env", "DB_PASSWORD=##", "true"]);
    check(&["env", "API_KEY=@@"], &["env", "API_KEY=##"]);
    check(&["env", "AWS_SECRET_ACCESS_KEY=@@"], &["env", "AWS_SECRET_ACCESS_KEY=##"]);
    check(&["docker", "run", "-e", "PGPASSWORD=@@"], &["docker", "run", "-e", "PGPASSWORD=##"]);
    check(&["x", "--env=PGPASSWORD=@@ y"], &["x", "--env=PGPASSWORD=##"]);
}

#[test]
fn clients_that_take_a_secret_behind_a_short_option() {
    check(&["mysql", "-uroot", "-p@@", "db"], &["mysql", "-uroot", "-p##", "db"]);
    check(&["/usr/bin/mysqldump", "-p@@"], &["/usr/bin/mysqldump", "-p##"]);
    check(&["mariadb-dump", "-p@@"], &["mariadb-dump", "-p##"]);
    check(&["mysql", "-Bp@@"], &["mysql", "-Bp##"]);
    // With the secret the option read as the long option `pw`, whose value would be the next word.
    check(&["mysql", "-pw_@@", "db"], &["mysql", "-p##", "db"]);
    check(&["openssl", "enc", "-k", "@@"], &["openssl", "enc", "-k", "##"]);
    check(&["sudo", "-u", "bob", "mysql", "-p@@"], &["sudo", "-u", "bob", "mysql", "-p##"]);
    check(&["env", "A=b", "mysqladmin", "-p@@"], &["env", "A=b", "mysqladmin", "-p##"]);
    check(
        &["sshpass", "-p", "@@", "ssh", "-p", "22", "h"],
        &["sshpass", "-p", "##", "ssh", "-p", "22", "h"],
    );
    check(&["sshpass", "-p@@", "ssh", "h"], &["sshpass", "-p##", "ssh", "h"]);
    check(&["curl", "-u", "me:@@", "h"], &["curl", "-u", "me:##", "h"]);
    check(&["curl", "-sume:@@", "h"], &["curl", "-sume:##", "h"]);
    check(&["curl", "--user", "me:@@"], &["curl", "--user", "me:##"]);
    check(&["curl", "--user=me:@@"], &["curl", "--user=me:##"]);
    check(&["ldapsearch", "-x", "-w", "@@"], &["ldapsearch", "-x", "-w", "##"]);
    check(&["redis-cli", "-h", "h", "-a", "@@"], &["redis-cli", "-h", "h", "-a", "##"]);
    check(&["mongosh", "-u", "me", "-p", "@@"], &["mongosh", "-u", "me", "-p", "##"]);
    check(&["sqlcmd", "-U", "sa", "-P", "@@"], &["sqlcmd", "-U", "sa", "-P", "##"]);
    check(&["7z", "a", "-p@@", "x.7z"], &["7z", "a", "-p##", "x.7z"]);
    check(&["smbclient", "//h/s", "-U", "me%@@"], &["smbclient", "//h/s", "-U", "me%##"]);
    check(
        &["docker", "login", "-u", "me", "-p", "@@"],
        &["docker", "login", "-u", "me", "-p", "##"],
    );
    check(&["sqlplus", "scott/@@@db"], &["sqlplus", "scott/##@db"]);
    check(&["xfreerdp", "/u:me", "/p:@@"], &["xfreerdp", "/u:me", "/p:##"]);
    check(
        &["aws", "configure", "set", "aws_secret_access_key", "@@"],
        &["aws", "configure", "set", "aws_secret_access_key", "##"],
    );
    check(&["nmcli", "dev", "password", "@@"], &["nmcli", "dev", "password", "##"]);
    check(&["openssl", "-passin", "pass:@@"], &["openssl", "-passin", "pass:##"]);
}

#[test]
fn headers_urls_and_bodies() {
    check(&["curl", "-H", "Authorization: Bearer @@"], &["curl", "-H", "Authorization: Bearer ##"]);
    check(&["curl", "-HAuthorization:Basic @@"], &["curl", "-HAuthorization:Basic ##"]);
    check(&["curl", "--header=authorization: @@"], &["curl", "--header=authorization: ##"]);
    check(
        &["curl", "-H", "Authorization:", "Bearer", "@@", "h"],
        &["curl", "-H", "Authorization:", "Bearer", "##", "h"],
    );
    check(
        &["curl", "-H", "Authorization: Bearer", "@@"],
        &["curl", "-H", "Authorization: Bearer", "##"],
    );
    check(&["curl", "-H", "X-Api-Key: @@"], &["curl", "-H", "X-Api-Key: ##"]);
    check(&["curl", "-H", "Cookie: a=b; s=@@"], &["curl", "-H", "Cookie: ##"]);
    check(&["x", "https://me:@@@h:80/p"], &["x", "https://me:##@h:80/p"]);
    check(&["x", "https://me:@@@home@h/p"], &["x", "https://me:##@h/p"]);
    check(&["x", "db://me:a/@@@h/p"], &["x", "db://me:##@h/p"]);
    check(&["x", "--url=amqp://:@@@h"], &["x", "--url=amqp://:##@h"]);
    check(&["x", "https://h/?a=b&token=@@&c=d"], &["x", "https://h/?a=b&token=##&c=d"]);
    check(
        &["curl", "-d", r#"{"password":"@@","a":1}"#],
        &["curl", "-d", r###"{"password":"##","a":1}"###],
    );
    check(&["x", "Server=h;Password=@@;Db=d"], &["x", "Server=h;Password=##;Db=d"]);
    check(&["x", "AKIAIOSFODNN7EXAMPLE"], &["x", "##"]);
    check(&["x", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"], &["x", "##"]);
    check(
        &["git", "clone", "https://ghp_0123456789abcdefghij@github.com/x"],
        &["git", "clone", "https://##@github.com/x"],
    );
}

#[test]
fn command_lines_inside_an_argument() {
    check(&["sh", "-c", "mysql -p@@ -e 'select 1'"], &["sh", "-c", "mysql -p## -e 'select 1'"]);
    check(&["sh", "-c", "TOKEN=@@ ./run --fast"], &["sh", "-c", "TOKEN=## ./run --fast"]);
    check(
        &["bash", "-lc", r#"cd /x&&curl -H "Authorization: Bearer @@" http://h"#],
        &["bash", "-lc", r###"cd /x&&curl -H "Authorization: Bearer ##" http://h"###],
    );
    check(
        &["ssh", "h", r#"sh -c "mysql -p'@@' db""#],
        &["ssh", "h", r###"sh -c "mysql -p'##' db""###],
    );
    check(&["sh", "-c", r"mysql -p@@\ more db; ls"], &["sh", "-c", "mysql -p## db; ls"]);
    check(&["sh", "-c", "x --password '@@ and more' y"], &["sh", "-c", "x --password '##' y"]);
    check(&["sh", "-c", "echo `mysql -p@@`"], &["sh", "-c", "echo `mysql -p##`"]);
    check(&["postgres: bob --password @@"], &["postgres: bob --password ##"]);
}

#[test]
fn innocent_arguments_stay_as_they_are() {
    for line in [
        "mkdir -p x",
        "ls -s x",
        "ssh -p 22 host",
        "ssh -p22 host",
        "cp -p a b",
        "docker run -p 80:80 img",
        "docker run -v secrets:/run/secrets img",
        "x --password-file x",
        "psql --no-password -p 5432 db",
        "curl --passive h",
        "git log author=x --author me",
        "mysql -h host -P 3306 -u root -p db",
        "mysql --password --host=h",
        "env PWD=/tmp OLDPWD=/ SSH_AUTH_SOCK=/run/x",
        "llm --max-tokens 5 --tokenizer bpe",
        "curl -u me http://host:8080/path@v2",
        "ssh-keygen -t ed25519 -f key",
        "git checkout da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "docker build --secret id=x,src=y .",
        "ssh://git@github.com/x",
        "curl -s -k -L https://h/",
        "openssl req -key k.pem -keyout o.pem",
        "gcc -DPASSWORD_MAX=5 x.c",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        assert_eq!(redacted(&args), args);
        if !line.starts_with("docker") {
            assert_eq!(redacted(&["sh", "-c", line]), ["sh", "-c", line]);
        }
    }
}

#[test]
fn long_arguments_are_cut_after_redaction() {
    let long = "a".repeat(ARGV_BYTES_MAX - 20);
    let argv = RawArgv::from_args(["x", &long, "--password", SECRET, "tail"]).redact();
    assert!(argv.is_truncated());
    let shown = format!("{argv:?}");
    assert!(!shown.contains(&SECRET[..3]), "{}", &shown[shown.len() - 60..]);
    let bytes: usize = argv.iter().map(|arg| arg.len() + 1).sum();
    assert_eq!(bytes, ARGV_BYTES_MAX);

    let huge = "b".repeat(RAW_ARGV_BYTES_MAX);
    let argv = RawArgv::from_args(["x", &format!("{huge}://u:{SECRET}")]).redact();
    assert_eq!(argv.iter().collect::<Vec<_>>(), [b"x"]);
    assert!(argv.is_truncated());
}

#[test]
fn arguments_are_kept_byte_for_byte() {
    let argv = RawArgv::from_cmdline(b"x\0\0\xff\xfe\0last".to_vec()).redact();
    assert_eq!(argv.iter().collect::<Vec<_>>(), [&b"x"[..], b"", b"\xff\xfe", b"last"]);
    assert_eq!(serde_json::to_string(&argv).unwrap(), r#"["x","",{"bytes":"fffe"},"last"]"#);
    assert_eq!(argv.command_line(), r"x '' \xff\xfe last");
    assert!(RawArgv::from_cmdline(Vec::new()).redact().is_empty());
}

#[test]
fn raw_arguments_do_not_show_themselves() {
    let raw = RawArgv::from_args(["x", SECRET]);
    assert_eq!(format!("{raw:?}"), "RawArgv(16 bytes)");
}

/// The forms a secret is carried in, each a command with `@@` for the secret.
const FORMS: &[&[&str]] = &[
    &["--password", "@@"],
    &["--password=@@"],
    &["--token", "@@"],
    &["--api-key=@@"],
    &["mysql", "-p@@"],
    &["sudo", "mysql", "-p@@"],
    &["sshpass", "-p", "@@"],
    &["curl", "-u", "me:@@"],
    &["DB_PASSWORD=@@"],
    &["GITHUB_TOKEN=@@"],
    &["Authorization: Bearer @@"],
    &["Authorization: Basic @@"],
    &["Authorization:", "Bearer", "@@"],
    &["-H", "X-Api-Key: @@"],
    &["https://me:@@@h/"],
    &["sh", "-c", "mysql -p@@ -e x"],
    &["sh", "-c", "mysql -p'@@' -e \"x\""],
    &["sh", "-c", "A=b DB_PASSWORD=@@ x"],
    &["sh", "-c", "curl -H \"Authorization: Bearer @@\" h"],
    &["x", "https://h/?a=b&token=@@&c=d"],
    &["x", "{\"api_key\": \"@@\"}"],
];

fn arg() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1_u8.., 0..12)
}

proptest! {
    #[test]
    fn no_secret_survives_whatever_is_around(
        form in 0..FORMS.len(),
        secret in "[A-Za-z0-9_.!%+-]{0,6}Zq7Xw9[A-Za-z0-9_.!%+-]{0,6}",
        before in proptest::collection::vec(arg(), 0..4),
        after in proptest::collection::vec(arg(), 0..4),
    ) {
        let mut args = before;
        args.insert(0, b"program".to_vec());
        args.extend(FORMS[form].iter().map(|part| part.replace("@@", &secret).into_bytes()));
        args.extend(after);
        let argv = RawArgv::from_args(&args).redact();
        let shown: Vec<u8> = argv.iter().collect::<Vec<_>>().join(&b' ');
        prop_assert!(
            !shown.windows(6).any(|window| window == b"Zq7Xw9"),
            "{:?} became {:?}", FORMS[form], argv
        );
    }

    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let argv = RawArgv::from_cmdline(bytes).redact();
        let _ = argv.command_line();
    }

    #[test]
    fn any_text_of_telling_parts_is_taken(parts in proptest::collection::vec(
        proptest::sample::select(vec![
            "mysql", " ", "-p", "'", "\"", "\\", "=", ":", "://", "@", "password", "Authorization",
            "Bearer", ";", "\n", "sh -c ", "--", "token", "/", "?", "&", "x", "-----BEGIN ",
            "PRIVATE KEY-----", "-u", "curl", "{", "}", ",", "`",
        ]), 0..60,
    )) {
        let text: String = parts.concat();
        let _ = RawArgv::from_args([&text, &text]).redact();
    }
}

/// Quadratic behaviour on text made to provoke it would take minutes, not a moment.
#[test]
fn hostile_texts_take_no_more_than_plain_ones() {
    for part in [
        "://",
        "a:",
        "=",
        "password=",
        "'",
        "\\",
        "\"'",
        "@",
        "://a:b",
        "sh -c '",
        "eyJ/",
        "((",
        "-p ",
        "Authorization: ",
        "-----BEGIN ",
        "password:\"",
        "AKIA=",
        "mysql -p",
    ] {
        let text = part.repeat(RAW_ARGV_BYTES_MAX / part.len() - 1);
        let _ = RawArgv::from_args([text]).redact();
    }
}
