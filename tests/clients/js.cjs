// Stories that @azure/batch tells: `node js.cjs PACKAGE STORY POOL` does one and prints what it saw as one line of JSON.
// PACKAGE is the folder that scripts/clients prints; tests/integration/test_client_js.py judges. The endpoint comes as
// AZURE_BATCH_ENDPOINT, AZURE_BATCH_ACCOUNT and AZURE_BATCH_ACCESS_KEY.
"use strict";

const [, , packageFolder, storyName, poolId] = process.argv;
const { BatchServiceClient, BatchSharedKeyCredentials } = require(packageFolder);

const MILLISECONDS = 30_000;

function connected(key = process.env.AZURE_BATCH_ACCESS_KEY) {
  const credentials = new BatchSharedKeyCredentials(process.env.AZURE_BATCH_ACCOUNT, key);
  // a refusal that it repeats is a fault of the service
  return new BatchServiceClient(credentials, process.env.AZURE_BATCH_ENDPOINT, { noRetryPolicy: true });
}

const shell = (script) => `/bin/sh -c "${script}"`;
const job = (id, more = {}) => ({ id, poolInfo: { poolId }, ...more });
const task = (id, script = "true", more = {}) => ({ id, commandLine: shell(script), ...more });

async function wait(holds) {
  const ends = Date.now() + MILLISECONDS;
  while (!(await holds())) {
    if (Date.now() > ends) throw new Error(`it never was so: ${holds}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// the status, the code, and the first line of the message of the error that a call raises
async function refused(call) {
  try {
    await call();
  } catch (error) {
    return [error.statusCode, error.body?.code, error.body?.message?.value?.split("\n")[0]];
  }
  return null;
}

// every entry of a list, page by page
async function all(operations, next, first) {
  const entries = [];
  for (let page = await first; ; page = await operations[next](page.odatanextLink)) {
    entries.push(...page);
    if (!page.odatanextLink) return entries;
  }
}

async function text(download) {
  const chunks = [];
  for await (const chunk of (await download).readableStreamBody) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

const completed = (client, id) => async () => (await client.job.get(id)).state === "completed";

async function jobStory(client) {
  const id = "js-job";
  const seen = {};
  const pool = await client.pool.get(poolId);
  const [node] = await client.computeNode.list(poolId);
  seen.pool = [pool.id, pool.state, pool.allocationState];
  seen.node = [node.state, (await client.computeNode.get(poolId, node.id)).schedulingState];
  await client.job.add(
    job(id, {
      jobPreparationTask: { commandLine: shell("echo shared > $AZ_BATCH_NODE_SHARED_DIR/js") },
      jobReleaseTask: { commandLine: shell("rm $AZ_BATCH_NODE_SHARED_DIR/js") },
    }),
  );
  const statuses = () => client.job.listPreparationAndReleaseTaskStatus(id);
  seen.statusesBefore = (await statuses()).length;
  await client.task.add(id, task("one", "cat $AZ_BATCH_NODE_SHARED_DIR/js; echo out > out.txt"));
  const many = Array.from({ length: 100 }, (_, number) => task(`many${String(number).padStart(3, "0")}`));
  const added = await client.task.addCollection(id, many);
  seen.added = [[...new Set(added.value.map((result) => result.status))], added.value.length];
  await wait(async () => (await client.job.getTaskCounts(id)).taskCounts.completed === 101);
  const counts = await client.job.getTaskCounts(id);
  seen.counts = [counts.taskCounts.succeeded, counts.taskSlotCounts.running];
  const taskListOptions = { filter: "startswith(id, 'many')", select: "id,state", maxResults: 40 };
  const tasks = await all(client.task, "listNext", client.task.list(id, { taskListOptions }));
  seen.listed = new Set(tasks.map((entry) => entry.id)).size;
  seen.selected = tasks[0];
  const one = await client.task.get(id, "one");
  seen.task = [one.state, one.executionInfo.exitCode, one.executionInfo.result];
  const files = await client.file.listFromTask(id, "one", { recursive: true });
  seen.files = files.filter((file) => !file.isDirectory).map((file) => file.name).sort();
  seen.stdout = await text(client.file.getFromTask(id, "one", "stdout.txt"));
  seen.wd = await text(client.file.getFromTask(id, "one", "wd/out.txt"));
  const fileGetFromTaskOptions = { ocpRange: "bytes=2-4" };
  seen.range = await text(client.file.getFromTask(id, "one", "stdout.txt", { fileGetFromTaskOptions }));
  const properties = await client.file.getPropertiesFromTask(id, "one", "stdout.txt");
  seen.properties = [properties.contentLength, properties.ocpBatchFileIsdirectory];
  const path = `${one.nodeInfo.taskRootDirectory}/stdout.txt`;
  seen.onTheNode = await text(client.file.getFromComputeNode(poolId, node.id, path));
  await client.job.terminate(id, { terminateReason: "enough" });
  await wait(completed(client, id));
  seen.reason = (await client.job.get(id)).executionInfo.terminateReason;
  const [status] = await statuses();
  const { jobPreparationTaskExecutionInfo: preparation, jobReleaseTaskExecutionInfo: release } = status;
  seen.status = [preparation.result, preparation.retryCount, release.state, release.exitCode];
  const jobs = await client.job.list({ jobListOptions: { filter: `id eq '${id}'`, select: "id" } });
  seen.jobs = jobs.map((entry) => entry.id);
  await client.job.deleteMethod(id);
  await wait(() => refused(() => client.job.get(id)));
  return seen;
}

async function refusalsStory(client) {
  const id = "js-refusals";
  await client.job.add(job(id));
  await client.task.add(id, task("here"));
  await wait(async () => (await client.task.get(id, "here")).state === "completed");
  const calls = {
    JobExists: () => client.job.add(job(id.toUpperCase())),
    TaskExists: () => client.task.add(id, task("here")),
    JobNotFound: () => client.job.get("nowhere"),
    TaskNotFound: () => client.task.get(id, "nowhere"),
    PoolNotFound: () => client.pool.get("nowhere"),
    NodeNotFound: () => client.computeNode.get(poolId, "nowhere"),
    TaskSucceeded: () => client.task.reactivate(id, "here"),
    TaskCompleted: () => client.task.terminate(id, "here"),
    ConditionNotMet: () => client.job.patch(id, { priority: 1 }, { jobPatchOptions: { ifMatch: "0x8000000000000000" } }),
    InvalidQueryParameterValue: () => client.task.list(id, { taskListOptions: { filter: "colour eq 'red'" } }),
    JobPreparationTaskNotSpecified: () => client.job.listPreparationAndReleaseTaskStatus(id),
    InvalidPropertyValue: () => client.job.add(job("no spaces")),
    AuthenticationFailed: () => connected("d3Jvbmc=").job.get(id),
  };
  const seen = {};
  for (const [name, call] of Object.entries(calls)) seen[name] = await refused(call);
  seen.file = await refused(() => client.file.getFromTask(id, "here", "nowhere.txt"));
  const again = await client.task.addCollection(id, [task("here"), task("new")]);
  seen.again = again.value.map((result) => [result.taskId, result.status, result.error?.code ?? null]);
  const httpUrl = (number) => `https://host/${number}${"x".repeat(80)}`;
  const resourceFiles = Array.from({ length: 10_000 }, (_, n) => ({ httpUrl: httpUrl(n), filePath: `${n}` }));
  seen.RequestBodyTooLarge = await refused(() => client.task.add(id, task("huge", "true", { resourceFiles })));
  await client.job.terminate(id);
  await wait(completed(client, id));
  seen.JobCompleted = await refused(() => client.task.add(id, task("late")));
  await client.job.deleteMethod(id);
  return seen;
}

async function changesStory(client) {
  const id = "js-changes";
  const seen = {};
  await client.job.add(job(id, { priority: 3, constraints: { maxTaskRetryCount: 2 } }));
  await client.job.patch(id, { priority: 9 });
  const patched = await client.job.get(id);
  seen.patched = [patched.priority, patched.constraints.maxTaskRetryCount];
  const current = { jobUpdateOptions: { ifMatch: patched.eTag } };
  await client.job.update(id, { poolInfo: { poolId } }, current);
  const updated = await client.job.get(id);
  seen.updated = [updated.priority, updated.constraints.maxTaskRetryCount];
  seen.updatedAgain = (await refused(() => client.job.update(id, { poolInfo: { poolId } }, current))).slice(0, 2);
  await client.job.disable(id, "requeue");
  await wait(async () => (await client.job.get(id)).state === "disabled");
  await client.task.add(id, task("fails", "exit 3"));
  seen.whileDisabled = (await client.task.get(id, "fails")).state;
  await client.job.enable(id);
  await wait(async () => (await client.task.get(id, "fails")).state === "completed");
  const { exitCode, result, failureInfo } = (await client.task.get(id, "fails")).executionInfo;
  seen.failed = [exitCode, result, failureInfo.category, failureInfo.code];
  await client.job.disable(id, "wait");
  await client.task.reactivate(id, "fails");
  seen.reactivated = (await client.task.get(id, "fails")).state;
  await client.task.update(id, "fails", { constraints: { maxWallClockTime: "PT1H5S" } });
  seen.limit = (await client.task.get(id, "fails")).constraints.maxWallClockTime;
  await client.task.terminate(id, "fails");
  seen.terminated = (await client.task.get(id, "fails")).executionInfo.failureInfo.code;
  seen.subtasks = (await client.task.listSubtasks(id, "fails")).value;
  await client.task.deleteMethod(id, "fails");
  seen.tasksLeft = (await client.task.list(id)).length;
  await client.job.deleteMethod(id);
  return seen;
}

async function scheduleStory(client) {
  const id = "js-schedule";
  const seen = {};
  await client.jobSchedule.add({
    id,
    schedule: { recurrenceInterval: "PT3H" },
    jobSpecification: { poolInfo: { poolId }, jobManagerTask: { id: "manager", commandLine: shell("echo managed") } },
  });
  const exists = async (name) => (await client.jobSchedule.exists(name)).body;
  seen.exists = [await exists(id), await exists("nowhere")];
  const jobs = await client.job.listFromJobSchedule(id);
  seen.jobs = jobs.map((entry) => entry.id);
  await wait(completed(client, jobs[0].id));
  seen.ended = (await client.job.get(jobs[0].id)).executionInfo.terminateReason;
  seen.stdout = await text(client.file.getFromTask(jobs[0].id, "manager", "stdout.txt"));
  await client.jobSchedule.disable(id);
  seen.states = [(await client.jobSchedule.get(id)).state];
  await client.jobSchedule.enable(id);
  seen.states.push((await client.jobSchedule.get(id)).state);
  await client.jobSchedule.terminate(id);
  await wait(async () => (await client.jobSchedule.get(id)).state === "completed");
  await client.jobSchedule.deleteMethod(id);
  await wait(async () => !(await exists(id)));
  seen.deleted = (await refused(() => client.jobSchedule.get(id))).slice(0, 2);
  return seen;
}

const stories = { job: jobStory, refusals: refusalsStory, changes: changesStory, schedule: scheduleStory };
stories[storyName](connected()).then(
  (seen) => console.log(JSON.stringify(seen)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
