#!/bin/sh
# Builds the same program again and again; the number of each build is printed if all it has made is right.
mkdir -p /srv/out
cd /srv/out
cp /srv/part.c .
n=0
while [ "$n" = 0 ] || rm -- *.o program; do
  make -s -j4 -f /srv/Makefile || exit
  made="$(./program) $(cat -- *.o program | md5sum)"
  if [ "$n" != 0 ] && [ "$made" != "$wanted" ]; then
    echo "wrong: $made and not $wanted"
    exit 1
  fi
  wanted=$made
  echo "$n"
  n=$((n + 1))
done
