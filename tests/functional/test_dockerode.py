"""dockerode (npm), the client of Node programs: one life of a container and what belongs to it.

Rule: the package is the published one, in a Node process inside the private host.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine
from tests.support.newer import NODE_MISSING, NODE_MODULES, has_dockerode
from tests.support.registry import running_registry

pytestmark = [pytest.mark.skipif(not has_dockerode(), reason=NODE_MISSING), pytest.mark.timeout(120)]

PROLOGUE = """
const assert = require('node:assert');
const { PassThrough } = require('node:stream');
const Docker = require('dockerode');
const docker = new Docker({ socketPath: process.argv[2] });
const text = (stream) => new Promise((done, failed) => {
  const chunks = [];
  stream.on('data', (chunk) => chunks.push(chunk));
  stream.on('end', () => done(Buffer.concat(chunks).toString()));
  stream.on('error', failed);
});
const split = async (stream) => {
  const [out, err] = [new PassThrough(), new PassThrough()];
  docker.modem.demuxStream(stream, out, err);
  stream.on('end', () => { out.end(); err.end(); });
  return Promise.all([text(out), text(err)]);
};
const finished = (stream) => new Promise((done, failed) =>
  docker.modem.followProgress(stream, (error, steps) => error ? failed(error) : done(steps)));
const refused = async (promise, status) => {
  const error = await promise.then(() => assert.fail('it was not refused'), (e) => e);
  assert.equal(error.statusCode, status, String(error));
};
"""

LIFE = """
(async () => {
  assert.equal((await docker.ping()).toString(), 'OK');
  assert.ok(parseFloat((await docker.version()).ApiVersion) >= 1.41);
  const container = await docker.createContainer({
    Image: 'busybox', name: 'node-life', Cmd: ['sh', '-c', 'echo out; echo err >&2; exec cat'], OpenStdin: true,
    StdinOnce: true, Labels: { by: 'dockerode' }, Env: ['GREETING=hello'], HostConfig: { Memory: 64 << 20 },
  });
  const attached = await container.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
  const output = split(attached);
  const waiting = container.wait();
  await container.start();
  const sent = 'x'.repeat(1 << 20);

  const exec = await container.exec({ Cmd: ['sh', '-c', 'cat; echo $GREETING; exit 4'], AttachStdin: true,
                                      AttachStdout: true, AttachStderr: true });
  const stream = await exec.start({ hijack: true, stdin: true });
  const said = split(stream);
  stream.end('fed ');
  assert.deepEqual(await said, ['fed hello\\n', '']);
  assert.equal((await exec.inspect()).ExitCode, 4);

  assert.equal((await container.inspect()).HostConfig.Memory, 64 << 20);
  const listed = await docker.listContainers({ filters: { label: ['by=dockerode'] } });
  assert.deepEqual(listed.map((c) => c.Names), [['/node-life']]);
  const usage = await container.stats({ stream: false });
  assert.ok(usage.memory_stats.usage > 0);
  assert.ok((await container.top()).Processes.length >= 1);

  const packed = await text(await container.getArchive({ path: '/etc/passwd' }));
  assert.ok(packed.startsWith('passwd'));
  await container.rename({ name: 'node-other' });
  await container.pause();
  await container.unpause();
  attached.end(sent);
  assert.deepEqual(await waiting, { StatusCode: 0 });
  assert.deepEqual(await output, ['out\\n' + sent, 'err\\n']);
  assert.ok((await container.logs({ stdout: true, stderr: true })).toString().includes('err'));
  await refused(container.kill(), 409);
  await container.remove();
  await refused(container.inspect(), 404);

  const [ran, gone] = await docker.run('busybox', ['sh', '-c', 'exit 7'], new PassThrough(),
                                       { HostConfig: { AutoRemove: true } });
  assert.equal(ran.StatusCode, 7);
  await docker.createVolume({ Name: 'node-volume' });
  await docker.getVolume('node-volume').remove();
  const network = await docker.createNetwork({ Name: 'node-network' });
  assert.equal((await network.inspect()).Name, 'node-network');
  await network.remove();
  console.log('fine');
})().catch((error) => { console.error(error); process.exit(1); });
"""

IMAGES = """
(async () => {
  const name = process.argv[3] + '/pushed';
  await docker.getImage('busybox').tag({ repo: name, tag: 'one' });
  await finished(await docker.getImage(name + ':one').push({ authconfig: {} }));
  await docker.getImage(name + ':one').remove();
  const steps = await finished(await docker.pull(name + ':one'));
  assert.ok(steps.some((step) => /^Status: /.test(step.status)), JSON.stringify(steps));
  await refused(docker.pull(name + ':none'), 404);

  const seen = [];
  const events = await docker.getEvents({ filters: { type: ['image'] } });
  events.on('data', (line) => seen.push(JSON.parse(line).Action));
  const built = await finished(await docker.buildImage({ context: process.argv[4], src: ['Dockerfile', 'f'] },
                                                       { t: 'node-built' }));
  assert.ok(built.every((step) => !step.error), JSON.stringify(built));
  await docker.getImage('node-built').tag({ repo: 'node-again' });
  while (!seen.includes('tag')) await new Promise((go) => setTimeout(go, 20));
  events.destroy();
  assert.equal((await docker.getImage('node-built').history())[0].Tags.includes('node-built:latest'), true);
  const archive = await text(await docker.getImage('node-built').get());
  assert.ok(archive.includes('manifest.json'));
  for (const image of ['node-built', 'node-again', name + ':one']) await docker.getImage(image).remove();
  console.log('fine');
})().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.fixture
def script(engine: Engine) -> Iterator[str]:
    """Where scripts lie: beside the modules, as Node wants it."""
    directory = engine.host.base / "node"
    directory.mkdir()
    (directory / "node_modules").symlink_to(NODE_MODULES)
    yield str(directory / "script.js")
    shutil.rmtree(directory)


def node(engine: Engine, script: str, source: str, *arguments: str) -> str:
    """Run ``source`` to its end; what it printed."""
    with open(script, "w", encoding="utf-8") as file:
        file.write(PROLOGUE + source)
    return engine.host.check("node", script, engine.socket, *arguments, timeout=90)


def test_a_container_lives_through_dockerode(engine: Engine, script: str) -> None:
    assert node(engine, script, LIFE) == "fine\n"


def test_images_through_dockerode(engine: Engine, script: str, busybox_tar: bytes) -> None:
    context = engine.host.base / "node" / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nCOPY f /f\n")
    (context / "f").write_text("x")
    with running_registry(engine.host.base / "node" / "registry", host=engine.host) as registry:
        assert node(engine, script, IMAGES, registry, str(context)) == "fine\n"
