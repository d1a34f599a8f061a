//! `eventbus forget`: a durable consumer that does not come back.

use std::path::Path;

use clap::Args;
use daemoneye_eventbus::{BrokerStats, Client, ClientOptions, Role, TopicPattern};

use crate::connect::name;
use crate::failure::Failure;
use crate::stat::Eye;

/// Arguments of `eventbus forget`.
#[derive(Debug, Args)]
#[command(after_help = "\
A durable consumer holds back acknowledgements while it is away, so that publishers' logs grow. Once \
it is forgotten, what it has not committed is lost to it; should its name come again, it begins anew.")]
pub(crate) struct ForgetArgs {
    /// The consumer; it must not be attached
    #[arg(value_parser = name)]
    consumer: String,
}

/// Takes the consumer's place and has it forgotten.
pub(crate) async fn forget(socket: &Path, args: &ForgetArgs) -> Result<(), Failure> {
    const ID: &str = "eventbus-forget";
    let consumer = &args.consumer;
    let is_known = |stats: BrokerStats| stats.consumers.iter().any(|known| known.name == *consumer);
    let mut eye = Eye::new(socket, ID);
    if !is_known(eye.look().await?) {
        return Err(Failure::Failed(format!("the broker knows no durable consumer {consumer}")));
    }
    let client = Client::connect(socket, ClientOptions::new(ID, Role::Subscriber)).await?;
    // Nothing is ever published there: nothing is delivered that we would have to take.
    let nothing = TopicPattern::new("forget").map_err(Failure::failed)?;
    client.subscribe_durable(consumer, &[nothing], vec![]).await?.forget();
    // Behind the goodbye the broker has done it, or has not: it gives no answer.
    client.goodbye().await;
    if is_known(eye.look().await?) {
        let why = format!("the broker requires the consumer {consumer} and does not forget it");
        return Err(Failure::Failed(why));
    }
    eprintln!("eventbus: {consumer} is forgotten");
    Ok(())
}
