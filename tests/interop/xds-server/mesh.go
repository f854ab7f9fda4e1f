// A mesh of made services, as a control plane sends one to every sidecar: a cluster with its endpoints and a virtual
// host each, in one route table. And the clock of its pushes.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The port of every service.
const port = 8000

func madeMesh(query url.Values) (*cache.Snapshot, error) {
	number := map[string]int{"services": 0, "endpoints": 0, "changed": 0, "timeout": 0}
	for name := range number {
		value, err := strconv.Atoi(query.Get(name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		number[name] = value
	}
	resources := map[resource.Type][]types.Resource{}
	add := func(kind resource.Type, of types.Resource) { resources[kind] = append(resources[kind], of) }
	var hosts []*routepb.VirtualHost
	for service := range number["services"] {
		name := fmt.Sprintf("outbound|%d||%s", port, host(service))
		cluster, err := madeCluster(name, service, number["timeout"])
		if err != nil {
			return nil, err
		}
		add(resource.ClusterType, cluster)
		add(resource.EndpointType, madeEndpoints(name, service, number["endpoints"], service < number["changed"]))
		hosts = append(hosts, madeHost(name, service))
	}
	add(resource.RouteType, &routepb.RouteConfiguration{
		Name: fmt.Sprint(port), VirtualHosts: hosts, IgnorePortInHostMatching: true,
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(1048576), ValidateClusters: wrapperspb.Bool(false),
	})
	listener, err := madeListener()
	if err != nil {
		return nil, err
	}
	add(resource.ListenerType, listener)
	return cache.NewSnapshot(query.Get("version"), resources)
}

func host(service int) string {
	return fmt.Sprintf("service-%04d.namespace-%02d.svc.cluster.local", service, service%40)
}

func ads() *corepb.ConfigSource {
	return &corepb.ConfigSource{
		ResourceApiVersion:    corepb.ApiVersion_V3,
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
	}
}

func madeCluster(name string, service, timeout int) (*clusterpb.Cluster, error) {
	const unlimited = 4294967295
	metadata, err := structpb.NewStruct(map[string]any{"services": []any{map[string]any{
		"host": host(service), "name": fmt.Sprintf("service-%04d", service),
		"namespace": fmt.Sprintf("namespace-%02d", service%40),
	}}})
	return &clusterpb.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
		EdsClusterConfig:     &clusterpb.Cluster_EdsClusterConfig{EdsConfig: ads(), ServiceName: name},
		ConnectTimeout:       durationpb.New(time.Duration(timeout) * time.Second),
		LbPolicy:             clusterpb.Cluster_LEAST_REQUEST,
		CircuitBreakers: &clusterpb.CircuitBreakers{Thresholds: []*clusterpb.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(unlimited), MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests: wrapperspb.UInt32(unlimited), MaxRetries: wrapperspb.UInt32(unlimited), TrackRemaining: true,
		}}},
		CommonLbConfig: &clusterpb.Cluster_CommonLbConfig{
			LocalityConfigSpecifier: &clusterpb.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &clusterpb.Cluster_CommonLbConfig_LocalityWeightedLbConfig{}}},
		Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": metadata}},
	}, err
}

func madeEndpoints(name string, service, count int, changed bool) *endpointpb.ClusterLoadAssignment {
	second := 0
	if changed {
		second = 128
	}
	var endpoints []*endpointpb.LbEndpoint
	for index := range count {
		address := fmt.Sprintf("10.%d.%d.%d", second+service/250, service%250, index+1)
		endpoints = append(endpoints, &endpointpb.LbEndpoint{
			HostIdentifier: &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{
				Address: &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
					Address: address, PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: port}}}}}},
			Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {
				Fields: map[string]*structpb.Value{"workload": structpb.NewStringValue(
					fmt.Sprintf("service-%04d;namespace-%02d;service-%04d;v1;Kubernetes", service, service%40, service))}}}},
			LoadBalancingWeight: wrapperspb.UInt32(1),
		})
	}
	return &endpointpb.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints: []*endpointpb.LocalityLbEndpoints{{
			Locality: &corepb.Locality{Region: "region", Zone: "zone"}, LbEndpoints: endpoints,
			LoadBalancingWeight: wrapperspb.UInt32(uint32(count)),
		}},
	}
}

func madeHost(cluster string, service int) *routepb.VirtualHost {
	short := fmt.Sprintf("service-%04d", service)
	namespaced := fmt.Sprintf("%s.namespace-%02d", short, service%40)
	return &routepb.VirtualHost{
		Name:                       fmt.Sprintf("%s:%d", host(service), port),
		Domains:                    []string{host(service), namespaced, namespaced + ".svc", fmt.Sprintf("172.16.%d.%d", service/250, service%250+1)},
		IncludeRequestAttemptCount: true,
		Routes: []*routepb.Route{{
			Name: "default", Match: &routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{Prefix: "/"}},
			Decorator: &routepb.Decorator{Operation: fmt.Sprintf("%s:%d/*", host(service), port)},
			Action: &routepb.Route_Route{Route: &routepb.RouteAction{
				ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: cluster},
				Timeout:          durationpb.New(0),
				RetryPolicy: &routepb.RetryPolicy{
					RetryOn:    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
					NumRetries: wrapperspb.UInt32(2), HostSelectionRetryMaxAttempts: 5,
				},
				MaxStreamDuration: &routepb.RouteAction_MaxStreamDuration{
					MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)},
			}},
		}},
	}
}

func madeListener() (*listenerpb.Listener, error) {
	router, err := anypb.New(&routerpb.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := anypb.New(&hcmpb.HttpConnectionManager{
		StatPrefix: "outbound_0.0.0.0_8000",
		RouteSpecifier: &hcmpb.HttpConnectionManager_Rds{
			Rds: &hcmpb.Rds{RouteConfigName: fmt.Sprint(port), ConfigSource: ads()}},
		HttpFilters: []*hcmpb.HttpFilter{{
			Name: "envoy.filters.http.router", ConfigType: &hcmpb.HttpFilter_TypedConfig{TypedConfig: router}}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerpb.Listener{
		Name: "0.0.0.0_8000", TrafficDirection: corepb.TrafficDirection_OUTBOUND, BindToPort: wrapperspb.Bool(false),
		Address: &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
			Address: "0.0.0.0", PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: port}}}},
		FilterChains: []*listenerpb.FilterChain{{Filters: []*listenerpb.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerpb.Filter_TypedConfig{TypedConfig: manager}}}}},
	}, proto.CheckInitialized(manager)
}

// progress counts what has happened since the last push. Times are microseconds since it.
type progress struct {
	sync.Mutex
	began                                        time.Time
	answers, acknowledgements                    int
	firstAnswer, lastAnswer, lastAcknowledgement time.Duration
}

func (p *progress) begin() {
	p.Lock()
	defer p.Unlock()
	p.began, p.answers, p.acknowledgements = time.Now(), 0, 0
	p.firstAnswer, p.lastAnswer, p.lastAcknowledgement = 0, 0, 0
}

func (p *progress) answered() {
	p.Lock()
	defer p.Unlock()
	p.answers++
	p.lastAnswer = time.Since(p.began)
	if p.answers == 1 {
		p.firstAnswer = p.lastAnswer
	}
}

func (p *progress) acknowledged() {
	p.Lock()
	defer p.Unlock()
	p.acknowledgements++
	p.lastAcknowledgement = time.Since(p.began)
}

func (p *progress) serve(w http.ResponseWriter, _ *http.Request) {
	p.Lock()
	defer p.Unlock()
	json.NewEncoder(w).Encode(map[string]int64{
		"answers": int64(p.answers), "acknowledgements": int64(p.acknowledgements),
		"first_answer_us": p.firstAnswer.Microseconds(), "last_answer_us": p.lastAnswer.Microseconds(),
		"last_acknowledgement_us": p.lastAcknowledgement.Microseconds(),
	})
}
