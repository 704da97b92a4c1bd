"""The sources of settings, and the errors for invalid values."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aflow._core.settings import RunOptions, Settings, as_reached_here, looked_up, service_headers
from aflow.errors import InvalidName, InvalidSetting
from aflow.storage.factory import open_store


class World:
    """A home and a project, with settings in them."""

    def __init__(self, path: Path) -> None:
        self.project = path / "project"
        self.project.mkdir()
        self.env = {
            "AFLOW_HOME": str(path / "home"),
            "METAFLOW_HOME": str(path / "old-home"),
            "USER": "ada",
        }

    def write(self, path: Path, **values: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
        return path

    def home(self, name: str = "config.json", **values: Any) -> Path:
        return self.write(Path(self.env["AFLOW_HOME"]) / name, **values)

    def old_home(self, **values: Any) -> Path:
        return self.write(Path(self.env["METAFLOW_HOME"]) / "config.json", **values)

    def local(self, **values: Any) -> Path:
        return self.write(self.project / ".aflow" / "config.json", **values)

    def load(self, overrides: dict[str, Any] | None = None, **env: str) -> Settings:
        return Settings.load(self.env | env, self.project, **(overrides or {}))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_without_any_setting_the_defaults_hold(world: World) -> None:
    assert Settings(root=world.project / ".aflow", user="ada") == world.load()


def test_the_nearer_place_wins(world: World) -> None:
    seen = [world.load().max_workers]
    world.old_home(METAFLOW_MAX_WORKERS=2)
    seen.append(world.load().max_workers)
    world.home(AFLOW_MAX_WORKERS=3)
    seen.append(world.load().max_workers)
    world.local(AFLOW_MAX_WORKERS=4)
    seen.append(world.load().max_workers)
    seen.append(world.load(METAFLOW_MAX_WORKERS="5").max_workers)
    seen.append(world.load(METAFLOW_MAX_WORKERS="5", AFLOW_MAX_WORKERS="6").max_workers)
    seen.append(world.load({"max_workers": 7}, AFLOW_MAX_WORKERS="6").max_workers)

    assert [16, 2, 3, 4, 5, 6, 7] == seen


def test_the_name_that_run_gives_its_option_is_read_too(world: World) -> None:
    assert 8 == world.load(METAFLOW_RUN_MAX_WORKERS="8").max_workers


def test_an_empty_value_counts_as_not_set(world: World) -> None:
    world.home(AFLOW_DURABILITY="process")

    assert "process" == world.load(AFLOW_DURABILITY="").durability


def test_an_override_of_none_leaves_the_setting_alone(world: World) -> None:
    assert "worker" == world.load({"isolation": None}, AFLOW_ISOLATION="worker").isolation


def test_an_override_that_is_no_setting_is_a_mistake_of_the_caller(world: World) -> None:
    with pytest.raises(TypeError, match="colour"):
        world.load({"colour": "red"})


# ------------------------------------------------------------ the .aflow folder


def test_the_folder_is_found_by_walking_up(world: World) -> None:
    (world.project / ".aflow").mkdir()
    deep = world.project / "a" / "b"
    deep.mkdir(parents=True)

    assert world.project / ".aflow" == Settings.load(world.env, deep).root


def test_the_settings_of_the_folder_count_below_it(world: World) -> None:
    world.local(AFLOW_USER="grace")
    deep = world.project / "a"
    deep.mkdir()

    assert "grace" == Settings.load(world.env, deep).user


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_the_system_root_names_the_folder_that_holds_the_folder(
    world: World, tmp_path: Path, prefix: str
) -> None:
    env = {f"{prefix}_DATASTORE_SYSROOT_LOCAL": str(tmp_path / "data")}

    assert tmp_path / "data" / ".aflow" == world.load({}, **env).root


def test_the_datastore_root_is_the_folder_itself_seen_from_here(world: World) -> None:
    assert world.project / "store" == world.load({"datastore_root": "store"}).root


def test_urls_name_the_folder_and_the_database_in_it(world: World) -> None:
    settings = Settings(root=Path("/data/my files/.aflow"), user="ada")

    assert "file:///data/my%20files/.aflow" == settings.storage_url
    assert "sqlite:////data/my%20files/.aflow/metadata.db" == settings.metadata_url


def test_backends_find_the_folder_that_the_url_names(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path / "100% ünï code" / ".aflow", user="ada")
    store = open_store(settings.storage_url)
    store.put("x", [b"1"])

    assert settings.root.is_dir()


def test_a_working_directory_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    script = (
        "import os; os.rmdir(os.getcwd())\n"
        "from aflow._core.settings import Settings\n"
        "from aflow.errors import InvalidSetting\n"
        "try: Settings.load()\n"
        "except InvalidSetting as error: print(error)"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=gone, capture_output=True, text=True, check=True
    )

    assert "working directory cannot be read" in result.stdout


# ------------------------------------------------------------ profiles and files


def test_a_profile_has_its_own_file(world: World) -> None:
    world.home(AFLOW_USER="ada")
    world.home("config_team.json", AFLOW_USER="grace")

    assert "grace" == world.load(AFLOW_PROFILE="team").user


def test_a_profile_that_is_not_there_is_refused_with_the_files_looked_for(world: World) -> None:
    with pytest.raises(InvalidSetting, match=r"no profile 'team'.*config_team\.json"):
        world.load(METAFLOW_PROFILE="team")


def test_a_file_that_is_no_json_is_refused_with_its_place(world: World) -> None:
    path = world.home()
    path.write_text('{"AFLOW_USER": }')

    with pytest.raises(InvalidSetting, match=f"{path} are not valid JSON.*line 1"):
        world.load()


def test_a_file_that_is_no_object_is_refused(world: World) -> None:
    path = world.home()
    path.write_text("[1, 2]")

    with pytest.raises(InvalidSetting, match="one JSON object"):
        world.load()


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(world: World) -> None:
    path = world.home()
    path.unlink()
    path.mkdir()

    with pytest.raises(InvalidSetting, match=r"cannot be read: Is a directory"):
        world.load()


def test_keys_that_are_not_known_are_left_alone(world: World) -> None:
    world.old_home(METAFLOW_BATCH_JOB_QUEUE="queue", METAFLOW_SFN_IAM_ROLE="role")

    assert world.load().datastore == "local"


# ------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("AFLOW_DEFAULT_DATASTORE", "floppy", "local"),
        ("METAFLOW_DEFAULT_METADATA", "paper", "local"),
        ("AFLOW_DURABILITY", "forever", "power, process"),
        ("AFLOW_RUN_ISOLATION", "cell", "task, worker"),
        ("AFLOW_MAX_WORKERS", "0", "whole number of 1 or more"),
        ("AFLOW_MAX_WORKERS", "1.5", "whole number of 1 or more"),
        ("AFLOW_MAX_NUM_SPLITS", "many", "whole number of 1 or more"),
        ("AFLOW_DEBUG", "perhaps", "1 or 0"),
        ("AFLOW_USER", "x" * 496, "at most 495 characters"),
    ],
)
def test_a_value_that_cannot_be_used_names_key_place_and_what_is_allowed(
    world: World, key: str, value: str, allowed: str
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        world.load({}, **{key: value})

    message = str(caught.value)
    assert message.startswith(f"{key} in the environment is {value!r}; allowed: ")
    assert allowed in message


def test_a_value_of_a_file_that_cannot_be_used_names_the_file(world: World) -> None:
    path = world.local(AFLOW_MAX_WORKERS=True)

    with pytest.raises(InvalidSetting, match=f"AFLOW_MAX_WORKERS in {path} is True"):
        world.load()


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_a_flag_can_be_said_in_many_words(world: World, value: str) -> None:
    assert world.load(AFLOW_DEBUG=value).debug


@pytest.mark.parametrize("value", ["0", "false", "No", "off"])
def test_a_flag_can_be_denied_in_many_words(world: World, value: str) -> None:
    assert not world.load(AFLOW_DEBUG=value).debug


def test_decorators_for_every_run_are_words_or_a_list(world: World) -> None:
    words = world.load(METAFLOW_DEFAULT_DECOSPECS="retry:times=2 timeout:minutes=1")
    world.home(AFLOW_DEFAULT_DECOSPECS=["retry:times=2", "timeout:minutes=1"])

    assert ("retry:times=2", "timeout:minutes=1") == words.default_decospecs
    assert words.default_decospecs == world.load().default_decospecs


@pytest.mark.parametrize("name", ["NO_COLOR", "AFLOW_NO_COLOR"])
def test_colours_can_be_refused(world: World, name: str) -> None:
    assert world.load({}, **{name: "1"}).no_color
    assert not world.load().no_color


@example("7\x1f")
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_number_that_is_accepted_is_one_or_more(text: str) -> None:
    try:
        settings = Settings.load({"AFLOW_MAX_WORKERS": text, "USER": "ada"}, "/")
    except InvalidSetting:
        return

    assert settings.max_workers >= 1


def test_numbers_and_objects_of_a_file_are_what_the_environment_would_have(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.home(
        METAFLOW_DEFAULT_RUNTIME_LIMIT=3600,
        METAFLOW_BATCH_DEFAULT_TAGS={"team": "ads"},
        METAFLOW_SERVICE_HEADERS={"x-team": "ads"},
        AFLOW_SERVICE_INTERNAL_URL=None,
    )
    monkeypatch.chdir(world.project)

    assert "3600" == looked_up("DEFAULT_RUNTIME_LIMIT", env=world.env)
    assert {"team": "ads"} == json.loads(looked_up("BATCH_DEFAULT_TAGS", env=world.env) or "")
    assert {"x-team": "ads"} == service_headers("https://host", world.env)
    assert looked_up("SERVICE_INTERNAL_URL", env=world.env) is None
    with pytest.raises(InvalidSetting, match="SERVICE_HEADERS in the environment"):
        service_headers("https://host", world.env | {"AFLOW_SERVICE_HEADERS": "[1]"})


# ------------------------------------------------------------ who


@pytest.mark.parametrize(
    ("env", "user"),
    [
        ({"AFLOW_USER": "a", "METAFLOW_USER": "b", "SUDO_USER": "c", "USER": "d"}, "a"),
        ({"METAFLOW_USER": "b", "SUDO_USER": "c", "USER": "d"}, "b"),
        ({"SUDO_USER": "c", "USERNAME": "e", "USER": "d"}, "c"),
        ({"USERNAME": "e", "USER": "d"}, "e"),
        ({"USER": "d"}, "d"),
        ({"SUDO_USER": "root", "USER": "d"}, "d"),
        ({"USER": "root"}, pwd.getpwuid(os.getuid()).pw_name),
        ({}, pwd.getpwuid(os.getuid()).pw_name),
    ],
)
def test_the_user_is_the_first_who_is_named_and_not_root(env: dict[str, str], user: str) -> None:
    assert user == Settings.load({"AFLOW_HOME": "/no", "METAFLOW_HOME": "/no", **env}, "/").user


def test_a_uid_without_an_account_is_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_123_456)
    del world.env["USER"]

    assert "unknown" == world.load().user


def test_the_namespace_is_the_users_own_unless_it_is_set(world: World) -> None:
    assert "user:ada" == world.load().default_namespace
    assert "user:grace" == world.load(METAFLOW_NAMESPACE="user:grace").default_namespace


def test_what_a_run_gets_without_any_option_is_what_the_settings_say() -> None:
    settings, options = Settings(root=Path("/"), user="ada"), RunOptions()

    assert settings.max_workers == options.max_workers
    assert settings.max_num_splits == options.max_num_splits
    assert settings.max_log_size << 20 == options.max_log_size
    assert settings.isolation == options.isolation
    assert options == RunOptions.of(settings)


def test_a_run_is_started_as_the_settings_say_unless_it_is_given_something_else() -> None:
    settings = Settings(
        root=Path("/"), user="ada", max_workers=3, max_log_size=2, executor="queue",
        queue="sqlite:///q.db", retry_wait=1.5, namespace="user:grace",
    )  # fmt: skip

    options = RunOptions.of(settings, tags=["b", "a", "b"], fail_fast=True, retry_wait=0.0)

    assert (3, 2 << 20) == (options.max_workers, options.max_log_size)
    assert ("queue", "sqlite:///q.db") == (options.executor, options.queue)
    assert ("user:grace", 0.0, True) == (options.namespace, options.retry_wait, options.fail_fast)
    assert ("b", "a") == options.tags
    assert "" == RunOptions.of(settings, namespace="").namespace


@pytest.mark.parametrize("tags", ["one", [""], ["x" * 501], [str(each) for each in range(51)]])
def test_tags_that_a_run_cannot_have_are_refused(tags: Any) -> None:
    with pytest.raises(InvalidName):
        RunOptions.of(Settings(root=Path("/"), user="ada"), tags=tags)


@pytest.mark.parametrize(
    ("recorded", "env", "reached"),
    [
        ("file:///data", {"S3_ENDPOINT_URL": "http://here"}, "file:///data"),
        ("s3://b/p", {"S3_ENDPOINT_URL": "http://here"}, "s3://b/p"),  # it was in AWS
        ("s3://b/p?endpoint=E", {}, "s3://b/p?endpoint=E"),
        (
            "s3://b/p?endpoint=E&region=r",
            {"S3_ENDPOINT_URL": "http://here"},
            "s3://b/p?endpoint=http%3A%2F%2Fhere&region=r",
        ),
        (
            "s3://b/p?endpoint=E",
            {"S3_ENDPOINT_URL": "http://here", "DATASTORE_SYSROOT_S3": "s3://b/p/"},
            "s3://b/p/?endpoint=http%3A%2F%2Fhere",
        ),
        (
            "s3://b/p?endpoint=E",
            {"S3_ENDPOINT_URL": "http://here", "DATASTORE_SYSROOT_S3": "s3://b/p?endpoint=O"},
            "s3://b/p?endpoint=O",
        ),
        ("s3://b/p?endpoint=E", {"DATASTORE_SYSROOT_S3": "s3://b/p"}, "s3://b/p?endpoint=E"),
    ],
)
def test_the_endpoint_that_is_set_here_counts_for_what_others_have_stored(
    world: World, recorded: str, env: dict[str, str], reached: str
) -> None:
    settings = world.load({}, **{f"AFLOW_{name}": value for name, value in env.items()})

    assert reached == as_reached_here(recorded, settings)


@pytest.mark.parametrize("text", ["-1", "soon", "inf", "nan"])
def test_a_wait_that_is_none_is_refused(world: World, text: str) -> None:
    assert 0.5 == world.load(AFLOW_RETRY_WAIT="0.5").retry_wait
    with pytest.raises(InvalidSetting, match="AFLOW_RETRY_WAIT"):
        world.load(METAFLOW_RETRY_WAIT="3", AFLOW_RETRY_WAIT=text)


# ------------------------------------------------------------------ whose folder, whose key

NOT_ROOT = 65534


def foreign(world: World, mode: int = 0o755, owner: int | None = None) -> Path:
    """Create the project's `.aflow` with this mode and owner."""
    folder = world.project / ".aflow"
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    if owner is not None:
        os.chown(folder, owner, -1)
    return folder


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@needs_root
@pytest.mark.parametrize("below", [".", "deep/down"])
def test_a_folder_of_another_user_is_refused(world: World, below: str) -> None:
    folder = foreign(world, owner=NOT_ROOT)
    (world.project / below).mkdir(parents=True, exist_ok=True)
    for read in (
        lambda: Settings.load(world.env, world.project / below),
        lambda: Settings.load(world.env, world.project / below, datastore="local"),
    ):
        with pytest.raises(InvalidSetting, match=f"{folder} belongs to another user .uid 65534."):
            read()


@needs_root
@pytest.mark.parametrize(
    "more", [{"AFLOW_SAFE_DIRECTORIES": "*"}, {"AFLOW_SAFE_DIRECTORIES": "/x:PROJECT"},
             {"AFLOW_SAFE_DIRECTORIES": "PROJECT/.aflow"}, {"SUDO_UID": "65534"}],
)  # fmt: skip
def test_a_folder_of_another_user_is_used_where_that_is_wanted(
    world: World, more: dict[str, str]
) -> None:
    folder = foreign(world, owner=NOT_ROOT)
    env = {key: value.replace("PROJECT", str(world.project)) for key, value in more.items()}
    assert folder == Settings.load(world.env | env, world.project).root


@needs_root
def test_a_link_of_another_user_is_refused(world: World) -> None:
    (world.project / "mine").mkdir()
    (world.project / ".aflow").symlink_to("mine")
    os.lchown(world.project / ".aflow", NOT_ROOT, -1)
    with pytest.raises(InvalidSetting, match="belongs to another user"):
        Settings.load(world.env, world.project)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_folder_that_all_may_write_to_is_refused(world: World, mode: int) -> None:
    folder = foreign(world, mode)
    with pytest.raises(InvalidSetting, match=f"lets others write to it .* chmod go-w {folder}"):
        Settings.load(world.env, world.project)
    folder.chmod(0o755)
    assert folder == Settings.load(world.env, world.project).root


@pytest.mark.parametrize("name", ["config.json", "metadata.db"])
def test_a_file_in_the_folder_that_all_may_write_to_is_refused(world: World, name: str) -> None:
    folder = foreign(world)
    (folder / name).write_text("{}")
    (folder / name).chmod(0o666)
    with pytest.raises(InvalidSetting, match=f"The file {folder / name} lets others write to it"):
        Settings.load(world.env, world.project)
    folder.chmod(0o700)  # other users cannot access it
    assert folder == Settings.load(world.env, world.project).root


def test_a_folder_that_is_named_is_used_no_matter_who_owns_it(world: World) -> None:
    named = world.project / "named"
    named.mkdir(mode=0o777)
    named.chmod(0o777)
    assert named == Settings.load(world.env, world.project, datastore_root=str(named)).root


@pytest.mark.parametrize("key", ["AFLOW_SERVICE_URL", "AFLOW_SERVER", "METAFLOW_SERVICE_URL"])
@pytest.mark.parametrize("secret", [
    {"AFLOW_SERVICE_AUTH_KEY": "k"}, {"AFLOW_SERVICE_HEADERS": {"authorization": "k"}},
])  # fmt: skip
def test_an_address_of_one_file_never_gets_the_key_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch, key: str, secret: dict[str, Any]
) -> None:
    monkeypatch.chdir(world.project)
    world.local(**{key: "https://elsewhere/"})
    world.home(**secret)
    with pytest.raises(InvalidSetting, match="a secret goes only to an address of the same file"):
        service_headers("https://elsewhere", world.env)
    assert service_headers("https://named.by.hand", world.env)
    assert service_headers("https://elsewhere", world.env | {key: "https://elsewhere"})
    world.local(**{key: "https://elsewhere/"}, **secret)
    assert ["k"] == [*service_headers("https://elsewhere", world.env).values()]


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(world: World) -> None:
    for variable, value in (
        ("AFLOW_SERVICE_AUTH_KEY", "canary\nkey"),
        ("AFLOW_SERVICE_HEADERS", '{"authorization": "canary\\r\\nkey"}'),
    ):
        with pytest.raises(InvalidSetting, match=variable) as raised:
            service_headers("https://host", world.env | {variable: value})
        assert "canary" not in str(raised.value)


def test_a_queue_of_one_file_is_not_signed_with_the_key_of_another(world: World) -> None:
    world.local(AFLOW_QUEUE="redis://elsewhere")
    world.home(AFLOW_SIGNING_KEY="0123456789abcdef0123456789abcdef")
    with pytest.raises(
        InvalidSetting, match=r"AFLOW_QUEUE in .* does not get the AFLOW_SIGNING_KEY"
    ):
        world.load()


@pytest.mark.parametrize(
    ("value", "reported"),
    [
        ("", "is blank"),
        ("  ", "is blank"),
        (" , ", "is blank"),
        ("too short", "is too short"),
        (f"{'k' * 32},short", "is too short"),
    ],
)
def test_short_and_blank_signing_keys_are_refused_and_not_shown(value: str, reported: str) -> None:
    with pytest.raises(
        InvalidSetting, match=f"AFLOW_SIGNING_KEY in the environment {reported}"
    ) as got:
        Settings.load({"AFLOW_SIGNING_KEY": value, "USER": "me"}, cwd="/")
    assert "kkk" not in str(got.value)
    assert "short," not in str(got.value)


def test_several_signing_keys_are_good_at_once_and_the_first_of_them_signs() -> None:
    new, old = "n" * 32, "o" * 40
    settings = Settings.load({"AFLOW_SIGNING_KEY": f"{new}, {old}", "USER": "me"}, cwd="/")
    assert (new.encode(), old.encode()) == settings.signing_key_bytes
    assert () == Settings.load({"USER": "me"}, cwd="/").signing_key_bytes
    assert new not in repr(settings)
