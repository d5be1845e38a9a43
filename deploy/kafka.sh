#!/usr/bin/env bash
# Apache Kafka on loopback, from its Maven jars, for tests and trying things out. Needs java 17 or later, and mvn for the first start.
#
#   deploy/kafka.sh up             start (installing what is missing) and print the bootstrap address; a running broker is left alone
#   deploy/kafka.sh down           stop, keep the data
#   deploy/kafka.sh clean          stop and delete the data
#   deploy/kafka.sh status         print which brokers run; fails if one does not
#   deploy/kafka.sh address        print the bootstrap address
#   deploy/kafka.sh kill|start N   kill -9 broker N, start it again
#   deploy/kafka.sh topics ...     Kafka's own kafka-topics tool; likewise configs, groups, delete-records
#
# Variables, with their defaults:
#   KAFKA_PORT=19092     port of broker 1; broker i listens on KAFKA_PORT + 10 (i - 1), its controller on the port after
#   KAFKA_NODES=1        1 or 3 brokers, each also a controller
#   KAFKA_DIR            data, logs and process ids; ${TMPDIR:-/tmp}/millstream-kafka-$UID-$KAFKA_PORT
#   KAFKA_CACHE          the jars (about 60 MB); $MILLSTREAM_CACHE/kafka
#   MILLSTREAM_CACHE     ${XDG_CACHE_HOME:-~/.cache}/millstream
#   KAFKA_SECURE=         any text: brokers also listen on the port after their controller's with TLS and passwords
#                        (SASL_SSL, SCRAM-SHA-512). Their certificate is signed by $KAFKA_DIR/tls/ca.pem (needs openssl); the
#                        users are alice, who may do everything, and bob, who may do nothing; their passwords
#                        alice-secret and bob-secret. Who comes without TLS may do everything. Set it for every command.
#   KAFKA_PROXY=         a port: broker 1 also listens on the third port after its own, and tells who comes by it that it is to be
#                        reached on this port of loopback: for clients behind a proxy. Not with KAFKA_SECURE.
#   KAFKA_VERSION=4.1.1, KAFKA_HEAP=512m
set -euo pipefail

PORT=${KAFKA_PORT:-19092}
NODES=${KAFKA_NODES:-1}
VERSION=${KAFKA_VERSION:-4.1.1}
LOG4J_VERSION=2.24.3
HEAP=${KAFKA_HEAP:-512m}
SECURE=${KAFKA_SECURE:-}
PROXY=${KAFKA_PROXY:-}
DIR=${KAFKA_DIR:-${TMPDIR:-/tmp}/millstream-kafka-$UID-$PORT}
CACHE=${KAFKA_CACHE:-${MILLSTREAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream}/kafka}
JARS=$CACHE/$VERSION
START_SECONDS_MAX=90

fail() { echo "kafka.sh: $*" >&2; exit 1; }
port() { echo $((PORT + 10 * ($1 - 1))); }
nodes() { seq "$NODES"; }
address() { nodes | while read -r i; do echo "127.0.0.1:$(port "$i")"; done | paste -sd, -; }

# The glob must reach java as it is: java expands it.
java_run() { java -Xms128m -Xmx"$HEAP" -XX:+UseSerialGC -XX:TieredStopAtLevel="${TIER:-4}" -Dlog4j2.configurationFile="$DIR/log4j2.xml" -cp "$JARS/*" "$@"; }

# Downloads the jars once for all users of the cache; a half-finished download is never taken for a whole one.
install() {
  [ -d "$JARS" ] && return
  command -v mvn > /dev/null || fail "mvn is not on the PATH; install Maven (Debian: apt-get install maven) or put the jars of Kafka $VERSION into $JARS"
  mkdir -p "$CACHE"
  exec 9> "$CACHE/lock"
  flock 9
  [ -d "$JARS" ] && return
  echo "kafka.sh: fetching Apache Kafka $VERSION (about 60 MB) into $JARS" >&2
  local work=$CACHE/$VERSION.part
  rm -rf "$work" && mkdir -p "$work"
  pom > "$work/pom.xml"
  (cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory="$work/jars" -DincludeScope=runtime > mvn.log 2>&1) \
    || { tail -5 "$work/mvn.log" >&2; fail "Maven could not fetch Apache Kafka $VERSION; see $work/mvn.log"; }
  mv "$work/jars" "$JARS"
  rm -rf "$work"
}

# The broker's jars bring no logging backend of their own: log4j is named here. Streams and its native store are not needed.
pom() {
  dependency() {
    echo "<dependency><groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version>"
    echo "<exclusions><exclusion><groupId>org.rocksdb</groupId><artifactId>rocksdbjni</artifactId></exclusion></exclusions></dependency>"
  }
  echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
  echo '<groupId>millstream</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
  dependency org.apache.kafka kafka_2.13 "$VERSION"
  dependency org.apache.kafka kafka-tools "$VERSION"
  dependency org.apache.logging.log4j log4j-slf4j-impl "$LOG4J_VERSION"
  dependency org.apache.logging.log4j log4j-core "$LOG4J_VERSION"
  dependency org.apache.logging.log4j log4j-1.2-api "$LOG4J_VERSION"
  echo '</dependencies></project>'
}

log_settings() {
  echo '<Configuration status="WARN"><Appenders><Console name="C"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console></Appenders>'
  echo '<Loggers><Root level="WARN"><AppenderRef ref="C"/></Root></Loggers></Configuration>'
}

# Settings of broker $1. One broker can't replicate: the internal topics follow the number of nodes, or the first
# transaction would wait for ever. Time-outs that tests wait for are short. Messages are kept for ever: tests write some with
# timestamps of years ago, which a broker deletes at the first look, half a minute after its start and every five minutes.
settings() {
  local replicas=1 in_sync=1 voters
  if [ "$NODES" -ge 3 ]; then replicas=3 in_sync=2; fi
  voters=$(nodes | while read -r n; do echo "$n@127.0.0.1:$(($(port "$n") + 1))"; done | paste -sd, -)
  cat <<X
process.roles=broker,controller
node.id=$1
controller.quorum.voters=$voters
listeners=PLAINTEXT://127.0.0.1:$(port "$1"),CONTROLLER://127.0.0.1:$(($(port "$1") + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$(port "$1")
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$DIR/data-$1
default.replication.factor=$replicas
min.insync.replicas=$in_sync
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$in_sync
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$in_sync
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
X
  [ -z "$SECURE" ] || secure_settings "$(($(port "$1") + 2))"
  if [ -n "$PROXY" ] && [ "$1" = 1 ]; then proxy_settings; fi
}

# A second listener of broker 1, for clients that come through a proxy.
proxy_settings() {
  cat <<X
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$((PORT + 1)),PROXIED://127.0.0.1:$((PORT + 3))
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT,PROXIED://127.0.0.1:$PROXY
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
X
}

# A second listener for clients, on port $1. Of two lines of one name the later one counts.
secure_settings() {
  cat <<X
listeners=PLAINTEXT://127.0.0.1:$(($1 - 2)),CONTROLLER://127.0.0.1:$(($1 - 1)),SASL_SSL://127.0.0.1:$1
advertised.listeners=PLAINTEXT://127.0.0.1:$(($1 - 2)),SASL_SSL://127.0.0.1:$1
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location=$DIR/tls/broker.pem
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:alice
X
}

# An authority of our own and a certificate of all brokers for localhost.
certificates() {
  [ -f "$DIR/tls/broker.pem" ] && return
  command -v openssl > /dev/null || fail "openssl is not on the PATH; KAFKA_SECURE needs it (Debian: apt-get install openssl)"
  mkdir -p "$DIR/tls"
  (
    cd "$DIR/tls"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=Millstream's tests" -keyout ca.key -out ca.pem
    openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout broker.key -out broker.csr
    echo "subjectAltName=DNS:localhost,IP:127.0.0.1" > names
    openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out broker.crt
    cat broker.key broker.crt > broker.pem
  ) > "$DIR/tls.log" 2>&1 || fail "openssl made no certificates; see $DIR/tls.log"
}

# True if broker $1 runs: the process id may be a stranger's by now, so its command line must name our settings.
running() {
  local pid
  pid=$(cat "$DIR/node-$1.pid" 2> /dev/null) || return 1
  tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline" | grep -qF "$DIR/node-$1.properties"
}

start() {
  running "$1" && return
  if (exec 3<> "/dev/tcp/127.0.0.1/$(port "$1")") 2> /dev/null; then
    fail "port $(port "$1") is taken by another program; choose another with KAFKA_PORT"
  fi
  settings "$1" > "$DIR/node-$1.properties"
  local users=() user
  if [ -n "$SECURE" ]; then
    for user in alice bob; do users+=(--add-scram "SCRAM-SHA-512=[name=$user,password=$user-secret]"); done
  fi
  [ -d "$DIR/data-$1" ] || TIER=1 java_run kafka.tools.StorageTool format -t "$(cat "$DIR/cluster.id")" -c "$DIR/node-$1.properties" "${users[@]}" > /dev/null
  nohup java -Xms128m -Xmx"$HEAP" -XX:+UseSerialGC -Dlog4j2.configurationFile="$DIR/log4j2.xml" -cp "$JARS/*" \
    kafka.Kafka "$DIR/node-$1.properties" > "$DIR/node-$1.log" 2>&1 < /dev/null 9>&- &
  echo $! > "$DIR/node-$1.pid"
}

# Waits until broker $1 accepts connections; it opens its port when it is ready to serve. A process that was started just now may not
# have its command line yet, so it is enough that it is there.
wait_for() {
  local deadline=$((SECONDS + START_SECONDS_MAX))
  until (exec 3<> "/dev/tcp/127.0.0.1/$(port "$1")") 2> /dev/null; do
    kill -0 "$(cat "$DIR/node-$1.pid")" 2> /dev/null || { tail -5 "$DIR/node-$1.log" >&2; fail "broker $1 stopped; its log is $DIR/node-$1.log"; }
    [ "$SECONDS" -lt "$deadline" ] || { tail -5 "$DIR/node-$1.log" >&2; fail "broker $1 is not up after ${START_SECONDS_MAX}s; its log is $DIR/node-$1.log"; }
    sleep 0.2
  done
}

up() {
  command -v java > /dev/null || fail "java is not on the PATH; install Java 17 or later (Debian: apt-get install openjdk-17-jre-headless)"
  install
  mkdir -p "$DIR"
  [ -f "$DIR/log4j2.xml" ] || log_settings > "$DIR/log4j2.xml"
  # A cluster id is 16 random bytes in URL-safe base64. Without its `-`: an id that begins with one would be taken for an option.
  [ -f "$DIR/cluster.id" ] || head -c 16 /dev/urandom | base64 | tr '+/' '__' | tr -d '=' > "$DIR/cluster.id"
  [ -z "$SECURE" ] || certificates
  local i
  for i in $(nodes); do start "$i"; done
  for i in $(nodes); do wait_for "$i"; done
  address
}

down() {
  local i pid
  for i in $(nodes); do
    running "$i" || continue
    pid=$(cat "$DIR/node-$i.pid")
    kill "$pid"
    for _ in $(seq 100); do running "$i" || break; sleep 0.1; done
    running "$i" && kill -9 "$pid"
    rm -f "$DIR/node-$i.pid"
  done
}

tool() { local class=$1; shift; install; TIER=1 java_run "$class" --bootstrap-server "$(address)" "$@"; }

command=${1:-help}
shift || true
case $command in
  up) up ;;
  down) down ;;
  clean) down; rm -rf "$DIR" ;;
  status)
    all=0
    for i in $(nodes); do
      if running "$i"; then echo "broker $i runs at 127.0.0.1:$(port "$i")"; else echo "broker $i does not run"; all=1; fi
    done
    exit $all ;;
  address) address ;;
  kill) running "${1:?number of the broker}" || fail "broker $1 does not run"; kill -9 "$(cat "$DIR/node-$1.pid")" ;;
  start) start "${1:?number of the broker}"; wait_for "$1" ;;
  topics) tool org.apache.kafka.tools.TopicCommand "$@" ;;
  configs) tool kafka.admin.ConfigCommand "$@" ;;
  groups) tool org.apache.kafka.tools.consumer.group.ConsumerGroupCommand "$@" ;;
  delete-records) tool org.apache.kafka.tools.DeleteRecordsCommand "$@" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; [ "$command" = help ] || exit 2 ;;
esac
