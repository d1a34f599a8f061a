//! `eventbus forget`: a durable consumer that does not come back.

use clap::Args;
use daemoneye_eventbus::{Client, Role, TopicPattern};

use crate::connect::{Bus, name};
use crate::failure::Failure;
use crate::stat::look;
use crate::terminal::say;

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
pub(crate) async fn forget(bus: &Bus, args: &ForgetArgs) -> Result<(), Failure> {
    let consumer = &args.consumer;
    let options = bus.client("eventbus-forget", Role::Subscriber);
    let client = Client::connect(&bus.socket, options).await?;
    let stats = look(&client).await?;
    // An answer that was cut short does not prove anything.
    if stats.left_out == 0 && !stats.consumers.iter().any(|known| known.name == *consumer) {
        return Err(Failure::Failed(format!("the broker knows no durable consumer {consumer}")));
    }
    // Nothing is ever published there: nothing is delivered that we would have to take.
    let nothing = TopicPattern::new("forget").map_err(Failure::failed)?;
    client.subscribe_durable(consumer, &[nothing], vec![]).await?.forget();
    // There is no answer to that. To what is asked next there is one only if it was done: else the
    // broker ends the connection and says why.
    look(&client).await?;
    client.goodbye().await;
    say(&format!("{consumer} is forgotten"));
    Ok(())
}
