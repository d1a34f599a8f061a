//! The broker's socket: whether it is named, trusted, and answered.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use daemoneye_eventbus::{Client, ClientOptions, ConnectError, Role};

use super::report::{Finding, Report, Verdict};
use super::shown;
use crate::cli::run::broker_socket;

const NAME: &str = "broker socket";
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Says hello to the broker that the variable names.
pub(super) fn check(variable: Option<OsString>, report: &mut Report) {
    let socket = match broker_socket(variable) {
        Ok(socket) => socket,
        Err(message) => return report.add(Finding::new(NAME, Verdict::Bad, message)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let finding = match runtime {
        Ok(runtime) => runtime.block_on(connect(&socket)),
        Err(error) => Finding::new(NAME, Verdict::Bad, error.to_string()),
    };
    report.add(finding);
}

async fn connect(socket: &Path) -> Finding {
    let options =
        ClientOptions { connect_timeout: ANSWER, ..ClientOptions::new("check", Role::Subscriber) };
    match Client::connect(socket, options).await {
        Ok(client) => {
            client.goodbye().await;
            let detail = format!("{} answers{}", shown(socket), owner(socket));
            Finding::new(NAME, Verdict::Good, detail)
        }
        Err(
            error @ (ConnectError::NoSocket { .. }
            | ConnectError::NobodyListening { .. }
            | ConnectError::Timeout { .. }),
        ) => {
            let detail = format!("{error}. Until it answers, events wait in the log");
            Finding::new(NAME, Verdict::Limited, detail)
        }
        Err(error) => Finding::new(NAME, Verdict::Bad, format!("{error}{}", owner(socket))),
    }
}

/// Whose socket it is and who may use it.
#[cfg(unix)]
fn owner(socket: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    socket.symlink_metadata().map_or_else(
        |_| String::new(),
        |metadata| {
            format!(" (owner: user {}, mode {:04o})", metadata.uid(), metadata.mode() & 0o7777)
        },
    )
}

#[cfg(not(unix))]
fn owner(_socket: &Path) -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use daemoneye_eventbus::{Broker, BrokerOptions};

    use super::*;

    fn found(variable: Option<OsString>) -> (Verdict, String) {
        let mut report = Report::default();
        check(variable, &mut report);
        let (verdict, detail) = report.only();
        (verdict, detail.to_owned())
    }

    #[test]
    fn a_socket_that_is_not_named_is_bad_and_one_that_is_not_there_is_not() {
        assert_eq!(found(None).0, Verdict::Bad);
        let dir = tempfile::tempdir().unwrap();
        let (verdict, detail) = found(Some(dir.path().join("none.sock").into()));
        assert_eq!(verdict, Verdict::Limited, "{detail}");
        assert!(detail.contains("wait in the log"), "{detail}");
    }

    #[cfg(unix)]
    #[test]
    fn a_broker_that_answers_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("b.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let broker = runtime.block_on(Broker::bind(BrokerOptions::new(&socket))).unwrap();
        let (verdict, detail) = found(Some(socket.clone().into()));
        assert_eq!(verdict, Verdict::Good, "{detail}");
        assert!(detail.contains("mode 0600"), "{detail}");
        runtime.block_on(broker.shutdown(Duration::from_secs(5)));
    }
}
