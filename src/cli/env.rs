//! `harbor env`

use super::{FINE, Failure, Outcome, complain, print, vcap_services};
use crate::announcer::vcap;

/// Print the variables that Stackato set, from VCAP_SERVICES.
///
/// With one bound service instance of Harbor that is STACKATO_HARBOR, the port that the app is to listen on; with several,
/// STACKATO_HARBOR_<NAME> for each. Names that come to the same variable are told on standard error, and it is left out.
/// In an app's .profile: eval "$(harbor env)".
#[derive(Debug, clap::Args)]
pub struct Env {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Env {
    pub fn run(self) -> Outcome {
        let bindings = vcap::services(vcap_services()?.as_deref().unwrap_or("{}"))
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let mut variables = Vec::new();
        for variable in vcap::variables(&vcap::once_each(bindings)) {
            match variable {
                Ok(variable) => variables.push(variable),
                // No failure: a shell evaluates the others.
                Err(ambiguous) => complain(&ambiguous.to_string()),
            }
        }
        let text = if self.json {
            let object = variables.iter().map(|variable| (variable.name.clone(), variable.port.into()));
            format!("{}\n", serde_json::Value::Object(object.collect()))
        } else {
            variables.iter().map(|variable| format!("{variable}\n")).collect()
        };
        print(&text)?;
        Ok(FINE)
    }
}
