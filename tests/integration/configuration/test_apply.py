"""Applying configurations: what it makes, what it leaves alone, and what happens when two do it at once."""

import asyncio

import pytest

from headway.config.changes import Change
from headway.config.load import ConfigurationFile
from headway.domain.snapshot import Snapshot
from headway.errors import ConfigurationError, ConflictError, NotFoundError, StorageError
from headway.rollouts.manual import set_share
from headway.storage import applications, configuration, rollouts, routing
from headway.storage.configuration import Applied, ReleasePlan
from headway.storage.database import Database
from tests.project import DEPLOYMENTS, Project

OTHER = "  sales:\n    release: {deployment: spare}\n"


async def apply(database: Database, file: ConfigurationFile, author: str = "ann") -> Applied:
    async with database.connection() as connection:
        return await configuration.apply(connection, file, author=author)


async def snapshot(database: Database) -> Snapshot:
    async with database.connection() as connection:
        found = await routing.latest(connection)
    assert found is not None
    return found


async def counts(database: Database) -> dict[str, int]:
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT 'configuration', count(*) FROM configuration UNION ALL SELECT 'application', count(*)"
            " FROM application UNION ALL SELECT 'release', count(*) FROM release UNION ALL SELECT 'snapshot', count(*)"
            " FROM routing_snapshot UNION ALL SELECT 'audit', count(*) FROM audit_log"
        )
        return dict(await cursor.fetchall())


async def test_the_first_release_is_live_at_once(database: Database, project: Project) -> None:
    file = project.write(keys="    unit: user\n    record: metadata\n    retention: 7d\n")
    applied = await apply(database, file)
    release = file.specification.applications["support"].release
    assert applied.plan.releases == (ReleasePlan("support", release.name, new=True, action="live"),)
    assert applied.plan.changes == tuple(
        Change("created", subject) for subject in ("deployment main", "deployment spare", "application support")
    )
    served = await snapshot(database)
    route = served.applications["support"]
    assert served.number == applied.snapshot
    assert (route.unit, route.record_content, route.retention_days, route.rollout) == ("user", False, 7, None)
    assert served.releases[route.stable].name == release.name
    assert served.releases[route.stable].bundle == release.bundle
    assert served.releases[route.stable].deployments == (file.specification.deployments["main"],)
    assert set(route.metrics) == {"thumbs_up", "stars", "comment", "correction"}


async def test_planning_writes_nothing(database: Database, project: Project) -> None:
    await apply(database, project.write())
    before = await counts(database)
    async with database.connection() as connection:
        planned = await configuration.plan(connection, project.write("Be long.", more=OTHER))
    assert not planned.is_empty
    assert await counts(database) == before


async def test_applying_twice_changes_nothing(database: Database, project: Project) -> None:
    await apply(database, project.write())
    before = await counts(database)
    again = await apply(database, project.write(), author="bob")
    assert again.plan.is_empty
    assert (again.entry, again.snapshot) == (0, 0)
    assert again.plan.releases[0].action == "stable"
    assert await counts(database) == before


async def test_a_file_that_only_reads_differently_is_kept_but_makes_no_release(
    database: Database, project: Project
) -> None:
    await apply(database, project.write())
    again = await apply(database, project.write(more="# a comment\n"))
    assert again.plan.text_only
    assert again.plan.changes == ()
    async with database.connection() as connection:
        entry = await configuration.current(connection)
        assert entry is not None
        assert entry.source.endswith("# a comment\n")
        assert len(await applications.list_releases(connection)) == 1


async def test_a_changed_release_waits_as_a_candidate(database: Database, project: Project) -> None:
    await apply(database, project.write())
    stable = (await snapshot(database)).applications["support"].stable
    file = project.write("Be long.")
    name = file.specification.applications["support"].release.name
    applied = await apply(database, file)
    assert applied.plan.releases == (
        ReleasePlan("support", name, new=True, action="candidate", next_step=f"headway share support {name} 10%"),
    )
    (change,) = applied.plan.changes
    assert change.subject == "application support"
    assert "release.prompt: 1 line added, 1 removed" in change.details
    route = (await snapshot(database)).applications["support"]
    assert route.stable == stable
    assert route.rollout is None
    assert name in route.releases


async def test_going_back_finds_the_old_release(database: Database, project: Project) -> None:
    first = (await apply(database, project.write())).plan.releases[0].release
    second = (await apply(database, project.write("Be long."))).plan.releases[0].release
    back = await apply(database, project.write())
    assert back.plan.releases == (ReleasePlan("support", first, new=False, action="stable"),)
    again = await apply(database, project.write("Be long."))
    assert again.plan.releases[0].release == second
    assert not again.plan.releases[0].new
    async with database.connection() as connection:
        assert {release.name for release in await applications.list_releases(connection)} == {first, second}
        assert len(await configuration.history(connection)) == 4


async def test_the_same_content_under_another_name_is_the_same_release(database: Database, project: Project) -> None:
    await apply(database, project.write(release=", name: spring"))
    applied = await apply(database, project.write(release=", name: summer"))
    assert applied.plan.releases == (ReleasePlan("support", "spring", new=False, action="stable"),)


async def test_a_release_never_changes(database: Database, project: Project) -> None:
    await apply(database, project.write(release=", name: spring"))
    before = await counts(database)
    with pytest.raises(ConfigurationError, match=r"applications\.support\.release\.name: the release 'spring' exists"):
        await apply(database, project.write("Be long.", release=", name: spring"))
    assert await counts(database) == before


async def test_operation_settings_follow_the_file_and_make_no_release(database: Database, project: Project) -> None:
    await apply(database, project.write())
    changed = DEPLOYMENTS.replace("MAIN_KEY", "NEW_KEY").replace("model: large", "model: large, attempts: 5")
    applied = await apply(database, project.write(deployments=changed))
    assert applied.plan.changes == (
        Change("changed", "deployment main", ("api_key: env:MAIN_KEY -> env:NEW_KEY", "attempts: 2 -> 5")),
    )
    assert applied.plan.releases[0].action == "stable"
    (release,) = (await snapshot(database)).releases.values()
    assert release.deployments[0].operation.api_key == "env:NEW_KEY"
    assert release.deployments[0].operation.attempts == 5


async def test_a_secret_never_follows_a_deployments_name_to_another_host(database: Database, project: Project) -> None:
    await apply(database, project.write())
    moved = DEPLOYMENTS.replace("http://127.0.0.1:9/v1, model: large", "http://elsewhere/v1, model: large")
    await apply(database, project.write(deployments=moved.replace("MAIN_KEY", "ELSEWHERE_KEY")))
    served = await snapshot(database)
    stable = served.releases[served.applications["support"].stable]
    assert stable.deployments[0].endpoint.base_url == "http://127.0.0.1:9/v1"
    assert stable.deployments[0].operation.api_key == "env:MAIN_KEY"
    (candidate,) = (release for release in served.releases.values() if release.number != stable.number)
    assert candidate.deployments[0].endpoint.base_url == "http://elsewhere/v1"
    assert candidate.deployments[0].operation.api_key == "env:ELSEWHERE_KEY"


async def test_prices_stay_with_the_model_that_is_called(database: Database, project: Project) -> None:
    priced = DEPLOYMENTS.replace("model: large", "model: large, usd_per_million_tokens: {input: 1, output: 2}")
    await apply(database, project.write(deployments=priced))
    cheaper = priced.replace("model: large", "model: larger").replace("input: 1, output: 2", "input: 3, output: 4")
    await apply(database, project.write(deployments=cheaper.replace("MAIN_KEY", "NEW_KEY")))
    served = await snapshot(database)
    operation = served.releases[served.applications["support"].stable].deployments[0].operation
    assert operation.usd_per_million_tokens is not None
    assert operation.usd_per_million_tokens.input == 1
    assert operation.api_key == "env:NEW_KEY"


async def test_a_deployment_that_is_gone_still_serves_its_releases(database: Database, project: Project) -> None:
    await apply(database, project.write())
    file = project.write(deployments=DEPLOYMENTS.replace("  main:", "  other:").replace("  spare:", "  main:"))
    await apply(database, file)
    served = await snapshot(database)
    stable = served.releases[served.applications["support"].stable]
    assert stable.deployments[0].endpoint.model == "large"


async def test_applications_retire_and_return(database: Database, project: Project) -> None:
    await apply(database, project.write(more=OTHER))
    number = (await snapshot(database)).applications["sales"].number
    applied = await apply(database, project.write())
    assert applied.plan.changes == (Change("removed", "application sales"),)
    assert set((await snapshot(database)).applications) == {"support"}
    async with database.connection() as connection:
        with pytest.raises(NotFoundError, match="no application is called 'sales'"):
            await applications.find_application(connection, "sales")
    back = await apply(database, project.write(more=OTHER))
    assert back.plan.releases[1].action == "stable"
    assert (await snapshot(database)).applications["sales"].number == number


async def test_a_rollout_ends_when_its_application_retires(database: Database, project: Project) -> None:
    await apply(database, project.write(more=OTHER))
    candidate = (await apply(database, project.write(more=OTHER.replace("spare", "main")))).plan.releases[1].release
    async with database.connection() as connection:
        await set_share(connection, "sales", candidate, 0.5, author="ann")
    await apply(database, project.write())
    async with database.connection() as connection:
        (rollout,) = await rollouts.list_rollouts(connection)
    assert rollout.state == "rolled_back"
    await apply(database, project.write(more=OTHER))
    assert (await snapshot(database)).applications["sales"].rollout is None


async def test_units_cannot_change_under_a_rollout(database: Database, project: Project) -> None:
    await apply(database, project.write())
    candidate = (await apply(database, project.write("Be long."))).plan.releases[0].release
    async with database.connection() as connection:
        await set_share(connection, "support", candidate, 0.5, author="ann")
    with pytest.raises(ConfigurationError, match=r"applications\.support\.unit: cannot change while"):
        await apply(database, project.write("Be long.", keys="    unit: user\n"))
    third = await apply(database, project.write("Be quick."))
    assert third.plan.releases[0].next_step.startswith(f"headway share support {candidate} 0% (or 100%), then")
    running = await apply(database, project.write("Be long."))
    assert running.plan.releases[0].action == "running"


async def test_two_who_apply_at_once_take_turns(database: Database, project: Project) -> None:
    files = [project.write(f"Prompt {number % 3}.") for number in range(9)]
    applied = await asyncio.gather(*(apply(database, file) for file in files))
    changed = [one for one in applied if not one.plan.is_empty]
    async with database.connection() as connection:
        entries = await configuration.history(connection)
        assert len(await applications.list_releases(connection)) == 3
    assert len(entries) == len(changed)
    # Each was planned against the one before it.
    assert sorted(one.plan.base for one in changed) == [0, *sorted(entry.number for entry in entries)[:-1]]
    numbers = sorted(one.snapshot for one in changed)
    assert len(set(numbers)) == len(numbers)
    newest = max(changed, key=lambda one: one.entry)
    assert (await snapshot(database)).number == newest.snapshot == numbers[-1]


async def test_a_plan_that_was_overtaken_is_refused(database: Database, project: Project) -> None:
    file = project.write()
    async with database.connection() as connection:
        planned = await configuration.plan(connection, file)
    await apply(database, project.write("Be long."), author="bob")
    async with database.connection() as connection:
        with pytest.raises(ConflictError, match="somebody else has applied a configuration meanwhile"):
            await configuration.apply(connection, file, author="ann", base=planned.base)
    async with database.connection() as connection:
        entry = await configuration.current(connection)
        assert entry is not None
        assert entry.applied_by == "bob"


async def test_applying_is_all_or_nothing(database: Database, project: Project) -> None:
    with pytest.raises(StorageError):  # noqa: PT012 (the block is what is tested)
        async with database.connection() as connection:
            await configuration.apply(connection, project.write(), author="ann")
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert set((await counts(database)).values()) == {0}


async def test_history_keeps_who_when_and_the_file(database: Database, project: Project) -> None:
    file = project.write()
    await apply(database, file)
    await apply(database, project.write("Be long."), author="bob")
    async with database.connection() as connection:
        newest, oldest = await configuration.history(connection)
        assert await configuration.find(connection, oldest.number) == oldest
        with pytest.raises(NotFoundError, match="no applied configuration 99"):
            await configuration.find(connection, 99)
        cursor = await connection.execute("SELECT author, action, subject FROM audit_log ORDER BY id")
        audit = await cursor.fetchall()
    assert (newest.applied_by, oldest.applied_by) == ("bob", "ann")
    assert newest.applied_at >= oldest.applied_at
    assert oldest.source == file.source
    assert oldest.specification == file.specification
    assert oldest.hash == file.specification.content_hash()
    assert audit == [
        ("ann", "configuration.apply", f"configuration {oldest.number}"),
        ("bob", "configuration.apply", f"configuration {newest.number}"),
    ]


async def test_every_change_is_announced(database: Database, project: Project) -> None:
    async with database.connection() as listener:
        await listener.execute("LISTEN headway_snapshot")
        await listener.commit()
        applied = await apply(database, project.write())
        async for notification in listener.notifies(timeout=10, stop_after=1):
            assert notification.payload == str(applied.snapshot)
            break
        else:
            pytest.fail("no notification came")
