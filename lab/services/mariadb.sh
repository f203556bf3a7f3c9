#!/bin/sh
# MariaDB as the first process, with the tables that mariadb-install-db makes.  InnoDB's native I/O is an io_uring,
# which is refused by name (docs/coverage.md); without it InnoDB has threads of its own for this.
set -e
share=/usr/share/mysql
mkdir /data/mysql
{
  # One statement a line is all that it takes in this mode.
  printf '%s;\n' 'CREATE DATABASE IF NOT EXISTS mysql' 'USE mysql' 'SET @skip_auth_anonymous=1' \
    'SET @auth_root_socket=NULL'
  cat $share/mysql_system_tables.sql $share/mysql_performance_tables.sql $share/mysql_system_tables_data.sql
} | mariadbd --no-defaults --bootstrap --datadir=/data --skip-log-bin --debug-no-sync \
  >/tmp/bootstrap 2>&1
exec mariadbd --no-defaults --datadir=/data --socket=/tmp/mariadb.sock --port=3306 --init-file=/srv/users.sql \
  --skip-name-resolve --innodb-use-native-aio=0 --innodb-buffer-pool-size=16M \
  --lc-messages-dir=$share --character-sets-dir=$share/charsets 2>/data/log
