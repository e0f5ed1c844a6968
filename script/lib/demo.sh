# The parts of script/demo: servers, requests, and what is sent through the port. Sourced, not run.

# Variables of the caller would override the demo's configuration.
unset "${!HARBOR_@}"

pids=()

# A directory for the state, the logs and the configuration; removed with all processes when the demo ends.
make_place() {
    place=$(mktemp -d "${TMPDIR:-/tmp}/harbor-demo.XXXXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local status=$?
    if [ "$status" != 0 ] && [ -s "$place/harbor.log" ]; then
        printf '\nThe log of harbor ends:\n' >&2
        tail -n 20 "$place/harbor.log" >&2
    fi
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$place"
    exit "$status"
}

# within SECONDS COMMAND …: repeats the command until it succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

start_nats() {
    say "nats-server"
    mkdir "$place/nats"
    nats-server -a 127.0.0.1 -p -1 --ports_file_dir "$place/nats" >"$place/nats.log" 2>&1 &
    pids+=($!)
    within 10 nats_has_a_port || fail "nats-server did not start: $(cat "$place/nats.log")"
    echo "$nats"
}

nats_has_a_port() {
    nats=$(grep -ohs 'nats://127.0.0.1:[0-9]*' "$place"/nats/*.ports)
}

start_harbor() {
    say "harbor serve"
    local password
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    # Files only, mode 0600: arguments can be read by everybody on the machine.
    (
        umask 077
        printf 'user = "harbor:%s"\n' "$password" >"$place/curl"
        cat >"$place/harbor.toml" <<CONFIG
[broker]
listen = "127.0.0.1:0"
password = "$password"

[admin]
listen = "127.0.0.1:0"

[nats]
servers = ["$nats"]

[harbor_node]
id = "harbor_node_1"
data_dir = "$place/data"
listen = ["127.0.0.1"]
port_range = "31000-31099"
host = "127.0.0.1"
hostname_external = "localhost"

[discovery]
domain = "harbor.example.com"
backend_networks = ["127.0.0.0/8"]

[forwarder]
drain_timeout = "2s"

[log]
format = "json"
CONFIG
    )
    grep -v '^password' "$place/harbor.toml"
    "$harbor" serve --config "$place/harbor.toml" >"$place/harbor.log" 2>&1 &
    harbor_pid=$!
    pids+=("$harbor_pid")
    within 30 harbor_is_ready || fail "harbor did not become ready"
    printf '\nready: broker %s, admin %s\n' "$broker" "$admin"
}

# The address that an API listens on, from the log.
address_of() {
    grep -F '"message":"listening"' "$place/harbor.log" | grep -F "\"api\":\"$1\"" |
        sed -n 's/.*"address":"\([^"]*\)".*/http:\/\/\1/p' | tail -n 1
}

harbor_is_ready() {
    kill -0 "$harbor_pid" 2>/dev/null || fail "harbor ended"
    admin=$(address_of admin)
    broker=$(address_of broker)
    [ -n "$admin" ] && [ -n "$broker" ] && curl -fsS "$admin/readyz" >/dev/null 2>&1
}

# ask STATUS METHOD PATH [BODY]: one call as the Cloud Controller makes it; shows both ways, keeps `answer` and `status`.
ask() {
    local expected=$1 method=$2 path=$3 body=${4:-}
    local arguments=(-sS --max-time 30 --config "$place/curl" -X "$method" -H 'X-Broker-API-Version: 2.17' -w '\n%{http_code}')
    [ -z "$body" ] || arguments+=(-H 'Content-Type: application/json' -d "$body")
    printf '→ %s %s %s\n' "$method" "$path" "$body"
    answer=$(curl "${arguments[@]}" "$broker$path")
    status=${answer##*$'\n'}
    answer=${answer%$'\n'*}
    printf '← %s %s\n' "$status" "$answer"
    [ "$status" = "$expected" ] || fail "$method $path: expected $expected"
}

# The first id of the last answer: in the catalog, the service's.
first_id() {
    grep -o '"id":"[^"]*"' <<<"$answer" | sed -n '1s/.*:"\(.*\)"/\1/p'
}

# The id of a plan, by its name.
id_of() {
    grep -o '{[^{}]*"name":"'"$1"'"[^{}]*' <<<"$answer" | grep -o '"id":"[^"]*"' | sed -n '1s/.*:"\(.*\)"/\1/p'
}

# A number of the last answer, by its key.
number() {
    grep -o "\"$1\":[0-9]*" <<<"$answer" | sed -n '1s/.*://p'
}

start_app() {
    local ports="$place/${1//\//-}.ports"
    "$echo_app" "$1" >"$ports" 2>&1 &
    pids+=($!)
    within 10 grep -q udp= "$ports" || fail "the app $1 did not start"
    app_tcp=$(sed -n 's/tcp=\([0-9]*\).*/\1/p' "$ports")
    app_udp=$(sed -n 's/.*udp=\([0-9]*\)/\1/p' "$ports")
    printf 'instance %s listens on TCP %s and UDP %s\n' "$1" "$app_tcp" "$app_udp"
}

# announce TCP-PORT UDP-PORT INDEX [APP]: a publisher's message, as it goes over the wire.
announce() {
    local message='{"host":"127.0.0.1","port":'$1',"app":"'${4:-$app}'","private_instance_id":"'${4:-$app}-$3'","private_instance_index":"'$3'","harbor":{"instance_id":"'$service_instance'","udp_port":'$2'}}'
    printf '→ harbor.register %s\n' "$message"
    publish harbor.register "$message" || fail "NATS did not take the message"
}

# publish SUBJECT MESSAGE: returns when the server has it.
publish() {
    local line
    exec 3<>"/dev/tcp/127.0.0.1/${nats##*:}"
    printf 'CONNECT {"verbose":false}\r\nPUB %s %d\r\n%s\r\nPING\r\n' "$1" "${#2}" "$2" >&3
    while IFS= read -r -t 10 line <&3; do
        case $line in
        PONG*) break ;;
        -ERR*) return 1 ;;
        esac
    done
    exec 3>&-
    [[ $line == PONG* ]]
}

# over_tcp PORT TEXT: sends a line on a connection of its own and prints the answer; nothing when there is none.
over_tcp() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf '%s\n' "$2" >&3
        IFS= read -r -t 5 line <&3
        printf '%s\n' "$line"
    ) 2>/dev/null || true
}

# over_udp PORT TEXT: sends one datagram and prints the answer; nothing when there is none.
over_udp() {
    (
        exec 3<>"/dev/udp/127.0.0.1/$1"
        printf '%s' "$2" >&3
        timeout 5 dd bs=65536 count=1 status=none <&3
    ) 2>/dev/null || true
}

both_serve() {
    [[ $(over_tcp "$port" hello) == game/1* ]] && [[ $(over_tcp "$port" hello) == game/0* ]]
}

nobody_serves() {
    [ -z "$(over_tcp "$port" hello)" ]
}

port_is_closed() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null
}

refusal_counted() {
    curl -sS "$admin/metrics" | grep 'app_not_bound' | grep -qv ' 0$'
}

# Keeps the apps announced and says what is there; nothing is cleaned up.
leave_running() {
    (
        trap - EXIT
        while sleep 20; do
            for index in 0 1; do
                ports=$(cat "$place/game-$index.ports")
                tcp=${ports#tcp=}
                announce "${tcp%% *}" "${ports##*udp=}" "$index"
            done
        done
    ) >"$place/announcer.log" 2>&1 &
    pids+=($!)
    cat >"$place/stop" <<STOP
kill ${pids[*]}
rm -rf "$place"
STOP
    trap - EXIT
    say "left running"
    cat <<KEEP
TCP and UDP port   127.0.0.1:$port
broker             $broker (curl --config $place/curl -H 'X-Broker-API-Version: 2.17' $broker/v2/catalog)
admin              $admin (metrics: curl $admin/metrics)
NATS               $nats
status             $harbor status --config $place/harbor.toml --admin $admin
logs and state     $place
stop               sh $place/stop
KEEP
}
