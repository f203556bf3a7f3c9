#!/bin/sh
# PostgreSQL as the first process, and a session over its Unix socket that counts in a table and prints the numbers.
set -e
bin=/usr/lib/postgresql/15/bin
$bin/initdb -D /data -U postgres -A trust -E UTF8 --locale C --no-sync >/dev/null 2>&1
echo 'host all all all trust' >>/data/pg_hba.conf

count() {
  until psql -h /tmp -U postgres -c 'CREATE TABLE numbers (n bigserial PRIMARY KEY, at timestamptz)' >/dev/null 2>&1; do
    sleep 0.1
  done
  while true; do
    echo 'INSERT INTO numbers (at) VALUES (now()) RETURNING n;'
    sleep 0.05
  done | psql -h /tmp -U postgres -qAt
}
count &
exec $bin/postgres -D /data -c 'listen_addresses=*' -c unix_socket_directories=/tmp -c shared_buffers=16MB \
  -c huge_pages=off -c logging_collector=off -c log_min_messages=log -c log_destination=stderr 2>/data/log
