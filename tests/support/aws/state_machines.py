"""Fixes of bugs in moto's interpreter for state machines that submit jobs of AWS Batch:

1. `_normalise_*` do nothing, so that batch:submitJob fails with a KeyError;
2. a retried `.sync` task times out immediately, because each try needs a new token;
3. a stopped `.sync` task leaves its job running, whereas AWS terminates it;
4. a `States.*` error cannot propagate out of a Map or a Parallel state.
"""

from __future__ import annotations

import functools
import importlib

import botocore.session
from moto.stepfunctions.parser.asl.component.common.error_name import custom_error_name
from moto.stepfunctions.parser.asl.utils.boto_client import boto_client_for

_STATES = "moto.stepfunctions.parser.asl.component.state.exec.state_task.service"
base, batch, callback = (
    importlib.import_module(f"{_STATES}.state_task_service{each}")
    for each in ("", "_batch", "_callback")
)


@functools.cache
def _operation(service: str, action: str):
    model = botocore.session.get_session().get_service_model(service)
    snake = base.camel_to_snake_case
    name = next((each for each in model.operation_names if snake(each) == action), None)
    if name is None:
        raise RuntimeError(f"No api action named '{action}' available for service '{service}'.")
    return model.operation_model(name)


def _shape(self, service, action, which):
    service = self._get_boto_service_name(service)
    return getattr(_operation(service, self._get_boto_service_action(action)), which)


def _parameters(self, parameters, boto_service_name=None, service_action_name=None):
    if shape := _shape(self, boto_service_name, service_action_name, "input_shape"):
        self._to_boto_request(parameters, shape)


def _response(self, response, boto_service_name=None, service_action_name=None):
    if shape := _shape(self, boto_service_name, service_action_name, "output_shape"):
        self._from_boto_response(response, shape)


def install() -> None:
    """Patch the interpreter of this process's moto."""
    base.StateTaskService._normalise_parameters = _parameters
    base.StateTaskService._normalise_response = _response
    execute = base.StateTaskService._eval_execution
    waits = callback.ResourceCondition.WaitForTaskToken

    def eval_execution(self, env):
        patterns = getattr(self, "_supported_integration_patterns", ())
        if self.resource.condition is not None and waits in patterns:
            token = env.states.context_object.update_task_token()
            env.callback_pool_manager.add(token)
        execute(self, env)

    callback.StateTaskServiceCallback._eval_execution = eval_execution
    resolver = batch.StateTaskServiceBatch._build_sync_resolver
    wait = callback.StateTaskServiceCallback._eval_sync

    def build(self, env, resource_runtime_part, normalised_parameters, state_credentials):
        env.batch_job = env.stack[-1]["JobId"], resource_runtime_part.region
        return resolver(self, env, resource_runtime_part, normalised_parameters, state_credentials)

    def eval_sync(self, env, **more):
        reported = wait(self, env, **more)
        if not isinstance(reported, dict) and (job := getattr(env, "batch_job", None)):
            client = boto_client_for(service="batch", region=job[1])
            client.terminate_job(jobId=job[0], reason="The execution was stopped.")
        return reported

    batch.StateTaskServiceBatch._build_sync_resolver = build
    batch.StateTaskServiceBatch._eval_sync = eval_sync

    def init(self, error_name):
        custom_error_name.ErrorName.__init__(self, error_name=error_name)

    custom_error_name.CustomErrorName.__init__ = init
