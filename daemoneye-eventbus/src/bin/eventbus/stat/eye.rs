//! A connection to look through.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{BrokerStats, Client, RequestError, Role, Topic};
use daemoneye_lib::topics::BROKER_STATS;

use crate::connect::Bus;
use crate::failure::Failure;

/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// See the module. The connection is made anew when it has ended.
pub(super) struct Eye<'a> {
    bus: &'a Bus,
    id: &'a str,
    client: Option<Client>,
}

impl<'a> Eye<'a> {
    pub(super) const fn new(bus: &'a Bus, id: &'a str) -> Self {
        Self { bus, id, client: None }
    }

    pub(super) async fn look(&mut self) -> Result<BrokerStats, Failure> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => {
                let options = self.bus.client(self.id, Role::Subscriber);
                Client::connect(&self.bus.socket, options).await?
            }
        };
        let seen = look(&client).await?;
        self.client = Some(client);
        Ok(seen)
    }
}

/// Asks the broker.
pub(crate) async fn look(client: &Client) -> Result<BrokerStats, Failure> {
    let topic = Topic::new(BROKER_STATS).map_err(Failure::failed)?;
    let answer = match client.request(&topic, Bytes::new(), ANSWER).await {
        Ok(answer) => answer,
        Err(RequestError::NoResponder { .. }) => {
            let why = "this broker does not let anybody look inside: it is of an older version";
            return Err(Failure::Failed(why.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&answer)
        .map_err(|error| Failure::Failed(format!("the answer is not understood: {error}")))
}
