#!/usr/bin/env bash
# A real Kubernetes 1.20.2 of one node on one Debian 12 machine, from Debian's packages and sources only.
#   one-node.sh build CACHE        fetch packages and sources, build the binaries; what is done is skipped
#   one-node.sh up CACHE RUN       start etcd, API server, controllers, scheduler, Docker and kubelet; wait for the node
#   one-node.sh stop RUN NAME      stop one of them
#   one-node.sh start RUN NAME     start it again as "up" did
#   one-node.sh status RUN
#   one-node.sh down RUN           stop all, and remove what they left on the machine
# After "up": KUBECONFIG=RUN/admin.conf; the node's engine is at RUN/docker.sock. Needs root. RUN: a short absolute path.
set -euo pipefail

DEBIAN_VERSION=1.20.5+really1.20.2-1.1+deb12u1
ADDRESS=10.88.0.1 # of the node, on a bridge that "up" makes; API server and kubelet listen there only
NETWORK=10.88.0.0/24
SERVICES=10.99.0.0/24
FIRST_SERVICE=10.99.0.1
BRIDGE=k8s0
PORT=16443
NODE=node1

say() { printf '%s %s\n' "$(date +%T)" "$*" >&2; }

# ---------------------------------------------------------------- build
packages() {
    if [ -e "$C/.packages" ]; then return; fi
    say "apt-get install: what the node needs"
    apt-get -o DPkg::Lock::Timeout=300 update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
        docker.io iptables conntrack ethtool socat gcc libc6-dev openssl dpkg-dev xz-utils jq curl >/dev/null
    touch "$C/.packages"
}

sources() { # Debian's source of Kubernetes, its Go and etcd, unpacked below CACHE; nothing of it is installed
    if [ -e "$C/.sources" ]; then return; fi
    say "Debian's sources and packages"
    local mirror signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' source=$C/gopath/src/k8s.io/kubernetes
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
    printf 'deb %s %s bookworm main\ndeb-src %s %s bookworm main\n' "$signed" "$mirror" "$signed" "$mirror" >"$C/apt/sources.list"
    local options=(-qq -o "Dir::Etc::SourceList=$C/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$C/apt/lists" -o "Dir::Cache=$C/apt/cache" -o APT::Sandbox::User=root
        -o Acquire::Check-Valid-Until=false)
    apt-get "${options[@]}" update
    (cd "$C/src" && apt-get "${options[@]}" source --download-only "kubernetes=$DEBIAN_VERSION")
    (cd "$C/debs" && apt-get "${options[@]}" download golang-1.19-go golang-1.19-src etcd-server \
        containernetworking-plugins golang-github-modern-go-reflect2-dev)
    local package
    for package in "$C"/debs/*.deb; do dpkg-deb -x "$package" "$C/root"; done
    rm -rf "$source"
    mkdir -p "$(dirname "$source")"
    dpkg-source --no-check -x "$C"/src/kubernetes_*.dsc "$source" >/dev/null
    # The vendored reflect2 1.0.1 crashes if it is built with Go 1.18 or newer; Debian's is 1.0.2.
    rm -rf "$source/vendor/github.com/modern-go/reflect2"
    cp -r "$C/root/usr/share/gocode/src/github.com/modern-go/reflect2" "$source/vendor/github.com/modern-go/reflect2"
    touch "$C/.sources"
}

openapi() { # the one generated file that Debian's source lacks
    if [ -e pkg/generated/openapi/zz_generated.openapi.go ]; then return; fi
    say "openapi-gen"
    go build -o "$C/bin/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    # The folders that upstream's Makefile.generated_files chooses.
    {
        find . \( -path ./_output -o -path ./vendor -o -path ./staging -o -path ./debian \) -prune -o -name '*.go' -print
        find vendor/k8s.io/*/ -follow -name '*.go' -not -path '*/testdata/*' -not -path '*/_examples/*'
    } | xargs grep -lE '^// *\+k8s:' | grep -vE 'vendor/k8s.io/(code-generator|sample-apiserver)/' |
        xargs grep -l '+k8s:openapi-gen=' | xargs -n 1 dirname | sed 's,^\./,,' | LC_ALL=C sort -u >"$C/openapi.folders"
    "$C/bin/openapi-gen" --logtostderr -i "$(sed 's,^,k8s.io/kubernetes/,' "$C/openapi.folders" | paste -sd,)" \
        -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
        -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$C/violations.report"
    cmp "$C/violations.report" api/api-rules/violation_exceptions.list # equal to upstream's, so the folders are, too
}

go() { nice -n 10 "$GOROOT/bin/go" "$@"; }

build() {
    mkdir -p "$1"
    C=$(cd "$1" && pwd)
    mkdir -p "$C"/{debs,src,root,bin,cni,apt/lists/partial,apt/cache/archives/partial}
    packages
    sources
    export GOROOT=$C/root/usr/lib/go-1.19 GOPATH=$C/gopath GOCACHE=$C/gocache GO111MODULE=off GOPROXY=off
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOGC=400
    unset GOFLAGS
    cd "$GOPATH/src/k8s.io/kubernetes"
    openapi
    local flags='-s -w' version name began
    for version in component-base client-go/pkg; do
        version=k8s.io/kubernetes/vendor/k8s.io/$version/version
        flags="$flags -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20"
        flags="$flags -X $version.gitTreeState=clean -X $version.gitCommit=debian -X $version.buildDate=2021-01-13T00:00:00Z"
    done
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
        if [ -x "$C/bin/$name" ]; then continue; fi
        began=$SECONDS
        go build -tags providerless -trimpath -ldflags "$flags" -o "$C/bin/$name.new" "./cmd/$name"
        mv "$C/bin/$name.new" "$C/bin/$name"
        say "$name: $((SECONDS - began)) s"
    done
    [ -x "$C/bin/pause" ] || gcc -Os -static -DVERSION=debian-3.2 -o "$C/bin/pause" build/pause/linux/pause.c
    cp -u "$C/root/usr/bin/etcd" "$C/bin/" # -u: a cluster that is up runs it
    cp -u "$C"/root/usr/lib/cni/* "$C/cni/"
    # Without CAP_SYS_RESOURCE the negative oom_score_adj that the kubelet wants for every pod fails. This stands in for
    # runc and takes it out of the bundle, and with it the capability that privileged pods would get.
    cat >"$C/bin/runc-limited" <<'END'
#!/bin/sh
previous= bundle=
for word; do
    if [ "$previous" = --bundle ]; then bundle=$word; fi
    case $word in --bundle=*) bundle=${word#*=} ;; esac
    previous=$word
done
if [ -n "$bundle" ] && [ -f "$bundle/config.json" ]; then
    sed -i -e 's/"oomScoreAdj":-[0-9][0-9]*/"oomScoreAdj":0/' -e 's/"CAP_SYS_RESOURCE",//g' \
        -e 's/,"CAP_SYS_RESOURCE"//g' "$bundle/config.json"
fi
exec /usr/sbin/runc "$@"
END
    chmod +x "$C/bin/runc-limited"
}

# ---------------------------------------------------------------- up
certificate() { # certificate NAME SUBJECT [ALTERNATIVE NAMES]
    openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -subj "$2" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile <(
        printf 'keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}"
    ) 2>/dev/null
    rm "$1.csr"
}

kubeconfig() { # kubeconfig NAME: from its certificate
    (
        umask 077
        cat >"$1.conf" <<END
apiVersion: v1
kind: Config
clusters: [{name: one-node, cluster: {server: "https://$ADDRESS:$PORT", certificate-authority-data: $(base64 -w0 pki/ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "pki/$1.crt"), client-key-data: $(base64 -w0 "pki/$1.key")}}]
contexts: [{name: one-node, context: {cluster: one-node, user: $1}}]
current-context: one-node
END
    )
}

credentials() {
    if [ -e admin.conf ]; then return; fi
    (
        cd pki
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 30 2>/dev/null
        openssl genrsa -out service-accounts.key 2048 2>/dev/null
        certificate apiserver /CN=kube-apiserver \
            "IP:$ADDRESS,IP:$FIRST_SERVICE,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
        certificate kubelet-client /O=system:masters/CN=apiserver-kubelet-client
        certificate admin /O=system:masters/CN=admin
        certificate controller-manager /CN=system:kube-controller-manager
        certificate scheduler /CN=system:kube-scheduler
        certificate kubelet "/O=system:nodes/CN=system:node:$NODE" "IP:$ADDRESS,DNS:$NODE"
    )
    local name
    for name in admin controller-manager scheduler kubelet; do kubeconfig $name; done
}

api() { curl -sf --noproxy '*' --cacert "$R/pki/ca.crt" --cert "$R/pki/admin.crt" --key "$R/pki/admin.key" "https://$ADDRESS:$PORT$1"; }
node_is_ready() { api "/api/v1/nodes/$NODE" | jq -e '.status.conditions[] | select(.type == "Ready" and .status == "True")'; }
engine() { docker -H "unix://$R/docker.sock" "$@"; }

command_of() { # command_of NAME COMMAND...: remembers how to start it
    local name=$1
    shift
    printf '%q ' exec "$@" >"$R/commands/$name"
}

start() { # start RUN NAME
    R=$(cd "$1" && pwd)
    cd "$R"
    setsid bash "$R/commands/$2" >>"$R/log/$2.log" 2>&1 </dev/null &
    echo $! >"$R/pid/$2"
}

await() { # await SECONDS NAME COMMAND...
    local end=$((SECONDS + $1)) name=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ! kill -0 "$(cat "$R/pid/$name")" 2>/dev/null || [ $SECONDS -ge $end ]; then
            say "$name has ended, or is not ready in time:"
            tail -n 20 "$R/log/$name.log" >&2
            return 1
        fi
        sleep 0.3
    done
}

network() { # a bridge, and the one service that every pod knows (kubernetes.default) without a kube-proxy
    local name chain
    for name in net/ipv4/ip_forward vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
        printf '%s %s\n' "$name" "$(cat /proc/sys/$name)"
    done >sysctl.before
    ip link add "$BRIDGE" type bridge
    ip addr add "$ADDRESS/${NETWORK#*/}" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    for chain in PREROUTING OUTPUT; do
        iptables -t nat -A $chain -d "$FIRST_SERVICE/32" -p tcp --dport 443 -j DNAT --to-destination "$ADDRESS:$PORT"
    done
    touch has-network
    cat >cni/10-one-node.conflist <<END
{"cniVersion": "0.3.1", "name": "one-node", "plugins": [{"type": "bridge", "bridge": "$BRIDGE", "isGateway": true,
 "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$R/ipam", "routes": [{"dst": "0.0.0.0/0"}],
 "ranges": [[{"subnet": "$NETWORK", "rangeStart": "${NETWORK%.*}.10", "gateway": "$ADDRESS"}]]}}, {"type": "loopback"}]}
END
}

commands() {
    local etcd=http://127.0.0.1:12379 peer=http://127.0.0.1:12380
    command_of etcd "$C/bin/etcd" --name one --data-dir "$R/etcd" --listen-client-urls $etcd --advertise-client-urls $etcd \
        --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster one=$peer
    command_of dockerd dockerd --data-root "$R/docker" --exec-root "$R/docker-exec" --pidfile "$R/dockerd.pid" \
        -H "unix://$R/docker.sock" --bridge=none --iptables=false --ip-forward=false --ip-masq=false \
        --log-opt max-size=1m --log-opt max-file=2 \
        --add-runtime "limited=$C/bin/runc-limited" --default-runtime limited
    command_of apiserver "$C/bin/kube-apiserver" --etcd-servers=$etcd --bind-address=$ADDRESS --advertise-address=$ADDRESS \
        --secure-port=$PORT --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
        --client-ca-file=pki/ca.crt --cert-dir=pki --kubelet-client-certificate=pki/kubelet-client.crt \
        --kubelet-client-key=pki/kubelet-client.key --kubelet-certificate-authority=pki/ca.crt \
        --kubelet-preferred-address-types=InternalIP --service-account-issuer=https://kubernetes.default.svc \
        --service-account-key-file=pki/service-accounts.key --service-account-signing-key-file=pki/service-accounts.key \
        --service-cluster-ip-range=$SERVICES --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
        --allow-privileged=true --anonymous-auth=false --profiling=false --feature-gates=BoundServiceAccountTokenVolume=true
    command_of controller-manager "$C/bin/kube-controller-manager" --kubeconfig=controller-manager.conf \
        --leader-elect=false --bind-address=127.0.0.1 --port=0 --authentication-kubeconfig=controller-manager.conf \
        --authorization-kubeconfig=controller-manager.conf --cert-dir=pki --use-service-account-credentials \
        --service-account-private-key-file=pki/service-accounts.key --root-ca-file=pki/ca.crt \
        --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key
    command_of scheduler "$C/bin/kube-scheduler" --kubeconfig=scheduler.conf --leader-elect=false --bind-address=127.0.0.1 \
        --port=0 --authentication-kubeconfig=scheduler.conf --authorization-kubeconfig=scheduler.conf --cert-dir=pki
    command_of kubelet env AWS_EC2_METADATA_DISABLED=true "$C/bin/kubelet" --config=kubelet.yaml --kubeconfig=kubelet.conf \
        --root-dir="$R/kubelet" --cert-dir="$R/pki" --hostname-override=$NODE --node-ip=$ADDRESS \
        --container-runtime=docker --docker-endpoint="unix://$R/docker.sock" \
        --docker="unix://$R/docker.sock" --docker-root="$R/docker" \
        --container-runtime-endpoint="unix://$R/dockershim.sock" --image-service-endpoint="unix://$R/dockershim.sock" \
        --experimental-dockershim-root-directory="$R/dockershim" --pod-infra-container-image=pause:local \
        --network-plugin=cni --cni-conf-dir="$R/cni" --cni-bin-dir="$C/cni" --cni-cache-dir="$R/cni-cache"
    cat >kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ADDRESS
port: 10250
readOnlyPort: 0
tlsCertFile: $R/pki/kubelet.crt
tlsPrivateKeyFile: $R/pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $R/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failSwapOn: false
makeIPTablesUtilChains: false
maxOpenFiles: 20000
oomScoreAdj: 0
resolvConf: /etc/resolv.conf
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100 # or images of the tests are collected, which cannot be pulled again
imageGCLowThresholdPercent: 99
imageMinimumGCAge: 1000h
volumePluginDir: $R/volume-plugins
END
}

up() {
    C=$(cd "$1" && pwd)
    mkdir -p "$2"
    R=$(cd "$2" && pwd)
    [ ! -e "$R/pid/kubelet" ] || { say "already up: $R"; return 1; }
    mkdir -p "$R"/{pki,log,pid,commands,cni,etcd}
    chmod 700 "$R"
    cd "$R"
    [ -e /var/lib/kubelet ] || touch made-var-lib-kubelet
    network
    credentials
    commands
    start "$R" etcd
    start "$R" dockerd
    start "$R" apiserver
    await 60 apiserver api /readyz
    start "$R" controller-manager
    start "$R" scheduler
    await 30 dockerd engine info
    engine image inspect pause:local >/dev/null 2>&1 ||
        tar -C "$C/bin" -c pause | engine import -c 'ENTRYPOINT ["/pause"]' - pause:local >/dev/null
    start "$R" kubelet
    await 90 kubelet node_is_ready
    await 30 controller-manager api /api/v1/namespaces/default/serviceaccounts/default
    say "the node is ready"
}

# ---------------------------------------------------------------- down
stop() { # stop RUN NAME
    local file=$1/pid/$2 pid
    if [ ! -e "$file" ]; then return; fi
    pid=$(cat "$file")
    kill -CONT "$pid" 2>/dev/null || true # a test may have paused it
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    ! kill -0 "$pid" 2>/dev/null || { say "$2 is killed"; kill -9 "$pid"; }
    rm -f "$file"
}

down() {
    R=$(cd "$1" && pwd)
    local name path value containers chain
    stop "$R" kubelet
    if [ -e "$R/pid/dockerd" ]; then
        containers=$(engine ps -aq 2>/dev/null || true)
        [ -z "$containers" ] || engine rm -f $containers >/dev/null 2>&1 || true
    fi
    for name in scheduler controller-manager apiserver etcd dockerd; do stop "$R" $name; done
    awk -v below="$R/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | while read -r path; do
        umount "$path" || umount -l "$path" || true
    done
    for path in /sys/fs/cgroup/*/kubepods; do
        [ ! -d "$path" ] || find "$path" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    if [ -e "$R/has-network" ]; then
        ip link del "$BRIDGE" 2>/dev/null || true
        for chain in PREROUTING OUTPUT; do
            iptables -t nat -D $chain -d "$FIRST_SERVICE/32" -p tcp --dport 443 -j DNAT --to-destination "$ADDRESS:$PORT" || true
        done
        while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$R/sysctl.before"
    fi
    [ ! -e "$R/made-var-lib-kubelet" ] || rm -rf /var/lib/kubelet
    rm -rf /var/log/pods /var/log/containers "$R"/{etcd,kubelet,dockershim,ipam,cni-cache,cni}
    rm -f "$R"/{has-network,made-var-lib-kubelet,sysctl.before}
    say "down; logs, credentials and images stay in $R"
}

status() {
    local file pid
    for file in "$1"/pid/*; do
        pid=$(cat "$file")
        if kill -0 "$pid" 2>/dev/null; then
            printf '%-20s %7s %s kB\n' "${file##*/}" "$pid" "$(awk '/VmRSS/ {print $2}' "/proc/$pid/status")"
        else
            printf '%-20s %7s gone\n' "${file##*/}" "$pid"
        fi
    done
}

case ${1:-} in
build | up | start | stop | status | down) "$@" ;;
*)
    sed -n 2,9p "$0"
    exit 2
    ;;
esac
