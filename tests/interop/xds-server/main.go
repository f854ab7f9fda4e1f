// An xDS server under a test's control: go-control-plane's snapshot cache, filled over HTTP.
//
//	POST /snapshot?version=V   {"clusters": [...], "endpoints": [...], "listeners": [...], "routes": [...], "secrets": [...]}
//	GET  /nacks                the errors of all NACKs so far, one JSON string a line
//	GET  /nodes                the node ids that asked, one a line
//	POST /mesh?version=V&services=N&endpoints=M&changed=K&timeout=S   a made mesh: N services of M endpoints, the first
//	                           K at other addresses than the rest's kind; connect timeout of S seconds (mesh.go)
//	GET  /progress             answers and acknowledgements since the last push, as JSON
//
// Resources are in protobuf's JSON form. It serves ADS, delta ADS and the services of each type, and prints the
// addresses of both servers on its first line: "xds HOST:PORT control HOST:PORT".
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlspb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listenerservice "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservice "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// oneNode gives every node the same snapshot.
type oneNode struct{}

func (oneNode) ID(*corepb.Node) string { return "node" }

type seen struct {
	sync.Mutex
	nacks []string
	nodes []string
}

func (s *seen) request(node *corepb.Node, message string) {
	s.Lock()
	defer s.Unlock()
	if node != nil {
		s.nodes = append(s.nodes, node.GetId())
	}
	if message != "" {
		s.nacks = append(s.nacks, message)
	}
}

func parse[T proto.Message](raw []json.RawMessage, empty func() T) ([]types.Resource, error) {
	var out []types.Resource
	for _, text := range raw {
		message := empty()
		if err := protojson.Unmarshal(text, message); err != nil {
			return nil, err
		}
		out = append(out, message)
	}
	return out, nil
}

type body struct {
	Clusters, Endpoints, Listeners, Routes, Secrets []json.RawMessage
}

func (b body) snapshot(version string) (*cache.Snapshot, error) {
	resources := map[resource.Type][]types.Resource{}
	var err error
	add := func(kind resource.Type, of []types.Resource, failed error) {
		if failed != nil && err == nil {
			err = failed
		}
		resources[kind] = of
	}
	of, failed := parse(b.Clusters, func() *clusterpb.Cluster { return &clusterpb.Cluster{} })
	add(resource.ClusterType, of, failed)
	of, failed = parse(b.Endpoints, func() *endpointpb.ClusterLoadAssignment { return &endpointpb.ClusterLoadAssignment{} })
	add(resource.EndpointType, of, failed)
	of, failed = parse(b.Listeners, func() *listenerpb.Listener { return &listenerpb.Listener{} })
	add(resource.ListenerType, of, failed)
	of, failed = parse(b.Routes, func() *routepb.RouteConfiguration { return &routepb.RouteConfiguration{} })
	add(resource.RouteType, of, failed)
	of, failed = parse(b.Secrets, func() *tlspb.Secret { return &tlspb.Secret{} })
	add(resource.SecretType, of, failed)
	if err != nil {
		return nil, err
	}
	return cache.NewSnapshot(version, resources)
}

func main() {
	address := "127.0.0.1:0"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	state := &seen{}
	pushed := &progress{}
	snapshots := cache.NewSnapshotCache(true, oneNode{}, nil)
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, request *discovery.DiscoveryRequest) error {
			state.request(request.GetNode(), request.GetErrorDetail().GetMessage())
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, request *discovery.DeltaDiscoveryRequest) error {
			state.request(request.GetNode(), request.GetErrorDetail().GetMessage())
			if request.GetResponseNonce() != "" {
				pushed.acknowledged()
			}
			return nil
		},
		StreamDeltaResponseFunc: func(int64, *discovery.DeltaDiscoveryRequest, *discovery.DeltaDiscoveryResponse) {
			pushed.answered()
		},
	}
	xds := server.NewServer(context.Background(), snapshots, callbacks)
	grpcServer := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
		MinTime: time.Second, PermitWithoutStream: true,
	}))
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, xds)
	clusterservice.RegisterClusterDiscoveryServiceServer(grpcServer, xds)
	endpointservice.RegisterEndpointDiscoveryServiceServer(grpcServer, xds)
	listenerservice.RegisterListenerDiscoveryServiceServer(grpcServer, xds)
	routeservice.RegisterRouteDiscoveryServiceServer(grpcServer, xds)
	secretservice.RegisterSecretDiscoveryServiceServer(grpcServer, xds)

	http.HandleFunc("/snapshot", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		var b body
		err := json.Unmarshal(text, &b)
		if err == nil {
			var snapshot *cache.Snapshot
			if snapshot, err = b.snapshot(r.URL.Query().Get("version")); err == nil {
				err = snapshots.SetSnapshot(context.Background(), "node", snapshot)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	http.HandleFunc("/mesh", func(w http.ResponseWriter, r *http.Request) {
		snapshot, err := madeMesh(r.URL.Query())
		if err == nil {
			pushed.begin()
			err = snapshots.SetSnapshot(context.Background(), "node", snapshot)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	http.HandleFunc("/progress", pushed.serve)
	lines := func(of func() []string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			state.Lock()
			defer state.Unlock()
			var out []byte
			for _, line := range of() {
				text, _ := json.Marshal(line)
				out = append(append(out, text...), '\n')
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(out)))
			w.Write(out)
		}
	}
	http.HandleFunc("/nacks", lines(func() []string { return state.nacks }))
	http.HandleFunc("/nodes", lines(func() []string { return state.nodes }))

	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("xds %s control %s\n", listener.Addr(), control.Addr())
	go func() { log.Fatal(http.Serve(control, nil)) }()
	log.Fatal(grpcServer.Serve(listener))
}
