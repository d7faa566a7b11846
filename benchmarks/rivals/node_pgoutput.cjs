// npm pg-logical-replication with its pgoutput plugin: every row's columns as its parser gives them, counted.
//
//     NODE_PATH=.rivals/node/node_modules node node_pgoutput.cjs HOST PORT SLOT PUBLICATION ROWS
//
// Prints JSON of the same fields as count.py.
'use strict';

const { LogicalReplicationService, PgoutputPlugin } = require('pg-logical-replication');

const [host, port, slot, publication, wanted] = process.argv.slice(2);
const rows = Number(wanted);
const begun = process.hrtime.bigint();
let seen = 0;
let first = null;
let half = null;

const look = () => {
  const { user, system } = process.cpuUsage();
  return { at: process.hrtime.bigint(), cpu: (user + system) / 1e6, seen };
};
const seconds = (from, to) => Number(to - from) / 1e9;

const service = new LogicalReplicationService(
  { host, port: Number(port), user: 'postgres', database: 'postgres' },
  { acknowledge: { auto: true, timeoutSeconds: 10 } },
);
service.on('data', (lsn, message) => {
  if (message.tag !== 'insert' && message.tag !== 'update' && message.tag !== 'delete') return;
  seen += 1;
  if (first === null) first = look();
  if (half === null && seen >= rows / 2) half = look();
  if (seen !== rows) return;
  const end = look();
  process.stdout.write(`${JSON.stringify({
    rows: seen - first.seen,
    wall_s: seconds(first.at, end.at),
    cpu_s: end.cpu - first.cpu,
    later_rows_per_s: Math.round((seen - half.seen) / seconds(half.at, end.at)),
    start_s: Math.round(seconds(begun, first.at) * 100) / 100,
  })}\n`, () => process.exit(0));
});
service.on('error', (error) => {
  process.stderr.write(`${error}\n`);
  process.exit(1);
});
service.subscribe(new PgoutputPlugin({ protoVersion: 1, publicationNames: [publication] }), slot);
setTimeout(() => {
  process.stderr.write(`only ${seen} of ${rows} rows came\n`);
  process.exit(1);
}, 280_000).unref();
