//! Requests: what is asked of a process, and what each answer promises.

use std::fmt::Debug;

use harbor::{
    control::{
        BindRefusal, BindSpec, Bound, DeleteRefusal, Failure, Fault, Progress, ProvisionRefusal, ProvisionSpec,
        Provisioned, UpdateRefusal, UpdateSpec,
    },
    model::{
        AppId, BindingId, OrganizationId, PlanId, PoolName, ServiceInstanceId, SpaceId,
        parameters::{ProvisionParameters, Settings, SettingsPatch},
        requester::Requester,
    },
};

use super::{
    history::{CHOOSER, CHOSEN_PORT, FIRST_GAME, Request},
    ledger::{Effect, FIRST_SETTING, Outcome},
    node::{Running, plans},
};

/// What an answer says.
#[derive(Debug)]
pub struct Answer {
    pub outcome: Outcome,
    /// Whether what was asked for is there, where the answer says so.
    pub saw: Option<bool>,
    /// The port that it tells.
    pub port: Option<u16>,
    /// Of which kind it is, for counting.
    pub kind: &'static str,
    /// All of it.
    pub words: String,
}

impl Answer {
    fn new(kind: &'static str, outcome: Outcome, saw: Option<bool>, words: &impl Debug) -> Self {
        Self { outcome, saw, port: None, kind, words: format!("{kind}: {words:?}") }
    }

    /// Nobody knows what became of it.
    pub fn unknown(why: &'static str) -> Self {
        Self::new(why, Outcome::Unknown, None, &())
    }

    fn telling(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// The answer of one that says nothing of the request.
    fn of_failure<R: Debug>(failure: &Failure<R>) -> Self {
        match failure {
            Failure::Refused(_) => Self::new("refused", Outcome::Not, None, failure),
            Failure::Busy => Self::new("busy", Outcome::Unknown, None, failure),
            Failure::Fault(Fault::Store(_)) => Self::new("the store is away", Outcome::Unknown, None, failure),
            Failure::Fault(Fault::NotTakenBack) => Self::new("not taken back", Outcome::Unknown, None, failure),
            Failure::Fault(_) => Self::new("faults", Outcome::Not, None, failure),
        }
    }
}

impl Running {
    /// Makes a request.
    pub async fn ask(&self, request: Request, effect: Effect) -> Answer {
        match (request, effect) {
            (Request::Provision { instance, later }, _) => self.provision(instance, later).await,
            (Request::Deprovision { instance }, _) => self.deprovision(instance).await,
            (Request::Bind { instance, binding }, _) => self.bind(instance, binding).await,
            (Request::Unbind { instance, binding }, _) => self.unbind(instance, binding).await,
            (Request::Update { instance, both }, Effect::Set(value)) => self.update(instance, both, value).await,
            (Request::Update { .. }, _) => unreachable!("an update sets something"),
        }
    }

    async fn provision(&self, instance: usize, later: bool) -> Answer {
        let spec = ProvisionSpec {
            id: instance_id(instance),
            plan_id: plan_of(instance),
            organization_id: OrganizationId::new("organization").unwrap(),
            space_id: SpaceId::new(format!("space-{}", instance % 2)).unwrap(),
            name: None,
            parameters: ProvisionParameters {
                protocol: None,
                port: (instance == CHOOSER).then_some(CHOSEN_PORT),
                settings: Settings { max_connections: Some(FIRST_SETTING), ..Settings::default() },
            },
            later,
            by: Requester::Harbor,
        };
        match self.control.provision(spec).await {
            Ok(Provisioned::Created(made)) => {
                Answer::new(PROVISIONED, Outcome::Done, Some(true), &made.port).telling(made.port)
            }
            Ok(Provisioned::Existing(known)) => {
                Answer::new("provisioned before", Outcome::Not, Some(true), &known.port)
            }
            Ok(Provisioned::Begun(begun)) => Answer::new(BEGUN, Outcome::Done, None, &begun.port),
            Err(Failure::Refused(conflict @ ProvisionRefusal::Conflict(_))) => {
                Answer::new("conflict", Outcome::Not, None, &conflict)
            }
            Err(Failure::Refused(refusal)) => Answer::new("not provisioned", Outcome::Not, Some(false), &refusal),
            Err(Failure::Fault(fault @ Fault::NotListening { .. })) => {
                Answer::new("not listening", Outcome::Not, Some(false), &fault)
            }
            Err(failure) => Answer::of_failure(&failure),
        }
    }

    async fn deprovision(&self, instance: usize) -> Answer {
        match self.control.deprovision(&instance_id(instance), &plan_of(instance), Requester::Harbor).await {
            Ok(gone) => Answer::new(DEPROVISIONED, Outcome::Done, Some(false), &gone.port),
            Err(Failure::Refused(DeleteRefusal::Gone)) => Answer::new("gone", Outcome::Not, Some(false), &()),
            Err(failure) => Answer::of_failure(&failure),
        }
    }

    async fn bind(&self, instance: usize, binding: usize) -> Answer {
        let spec = BindSpec {
            id: binding_id(instance, binding),
            service_instance_id: instance_id(instance),
            plan_id: Some(plan_of(instance)),
            app_id: Some(AppId::new(format!("app-{binding}")).unwrap()),
            space_id: None,
            announce: None,
            predecessor_id: None,
            by: Requester::Harbor,
        };
        match self.control.bind(spec).await {
            Ok(Bound::Created(with)) => Answer::new("bound", Outcome::Done, Some(true), &with.port).telling(with.port),
            Ok(Bound::Existing(with)) => {
                Answer::new("bound before", Outcome::Not, Some(true), &with.port).telling(with.port)
            }
            Err(Failure::Refused(refusal @ BindRefusal::NoServiceInstance(_))) => {
                Answer::new("nothing to bind to", Outcome::Not, Some(false), &refusal)
            }
            Err(failure) => Answer::of_failure(&failure),
        }
    }

    async fn unbind(&self, instance: usize, binding: usize) -> Answer {
        let id = binding_id(instance, binding);
        match self.control.unbind(&instance_id(instance), &id, &plan_of(instance), Requester::Harbor).await {
            Ok(_) => Answer::new("unbound", Outcome::Done, Some(false), &()),
            Err(Failure::Refused(DeleteRefusal::Gone)) => Answer::new("not bound", Outcome::Not, Some(false), &()),
            Err(failure) => Answer::of_failure(&failure),
        }
    }

    async fn update(&self, instance: usize, both: bool, value: u32) -> Answer {
        let spec = UpdateSpec {
            id: instance_id(instance),
            plan_id: Some(if instance >= FIRST_GAME {
                plan_of(instance)
            } else {
                plan_id(if both { "both" } else { "tcp" })
            }),
            settings: SettingsPatch { max_connections: Some(Some(value)), ..SettingsPatch::default() },
            name: None,
            by: Requester::Harbor,
        };
        match self.control.update(spec).await {
            Ok(changed) => Answer::new("updated", Outcome::Done, Some(true), &changed.protocol).telling(changed.port),
            Err(Failure::Busy) => Answer::new("busy with another update", Outcome::Not, None, &()),
            Err(Failure::Refused(refusal @ UpdateRefusal::NotFound(_))) => {
                Answer::new("nothing to update", Outcome::Not, Some(false), &refusal)
            }
            Err(failure) => Answer::of_failure(&failure),
        }
    }

    /// What has become of an operation.
    pub async fn progress(&self, instance: usize) -> Answer {
        match self.control.operation(&instance_id(instance)).await {
            Ok(Progress::InProgress) => Answer::new("in progress", Outcome::Unknown, None, &()),
            Ok(Progress::Succeeded) => Answer::new("succeeded", Outcome::Done, Some(true), &()),
            Ok(Progress::Failed(why)) => Answer::new("failed", Outcome::Done, Some(false), &why),
            Err(Failure::Refused(_)) => Answer::new("no operation", Outcome::Done, Some(false), &()),
            Err(failure) => Answer::of_failure(&failure),
        }
    }
}

/// The answer that promises another one.
pub const BEGUN: &str = "begun";

/// The answers that all live nodes were waited for with.
pub const PROVISIONED: &str = "provisioned";
pub const DEPROVISIONED: &str = "deprovisioned";

/// The id of a service instance.
pub fn instance_id(instance: usize) -> ServiceInstanceId {
    ServiceInstanceId::new(format!("instance-{instance}")).unwrap()
}

/// The id of a binding: no other service instance has it.
pub fn binding_id(instance: usize, binding: usize) -> BindingId {
    BindingId::new(format!("binding-{instance}-{binding}")).unwrap()
}

/// The pool that a service instance is of.
pub fn pool_of(instance: usize) -> PoolName {
    PoolName::new(if instance >= FIRST_GAME { "games" } else { "default" }).unwrap()
}

/// The plan that a service instance is asked for with.
fn plan_of(instance: usize) -> PlanId {
    plan_id(if instance >= FIRST_GAME { "games" } else { "tcp" })
}

fn plan_id(name: &str) -> PlanId {
    plans().into_iter().find(|plan| plan.name == name).map(|plan| plan.id).expect("it is in the catalog")
}
