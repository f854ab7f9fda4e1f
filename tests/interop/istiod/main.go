// A real istiod with configuration from files and no cluster: pilot-discovery's own server, started as its command
// does, over an empty Kubernetes in memory. (The command itself refuses to start without a Kubernetes client since
// its registry of service entries reads namespaces.)
//
// Flags: -config FOLDER, -grpc ADDRESS, -http ADDRESS (/ready, /debug), -mesh FILE. Everything else by istiod's own
// environment variables.
package main

import (
	"flag"
	"log"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"unsafe"

	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pkg/config/constants"
	"istio.io/istio/pkg/kube"
)

func main() {
	config := flag.String("config", "", "folder of YAML files with Istio resources; watched")
	grpc := flag.String("grpc", "127.0.0.1:15010", "address of ADS in plain text")
	http := flag.String("http", "127.0.0.1:0", "address of /ready and /debug")
	mesh := flag.String("mesh", "", "file with the mesh configuration; watched")
	flag.Parse()
	args := bootstrap.NewPilotArgs(func(args *bootstrap.PilotArgs) {
		args.RegistryOptions.FileDir = *config
		args.RegistryOptions.KubeOptions.DomainSuffix = constants.DefaultClusterLocalDomain
		args.MeshConfigFile = *mesh
		args.ServerOptions.GRPCAddr = *grpc
		args.ServerOptions.HTTPAddr = *http
		args.ServerOptions.TLSOptions.TLSMinVersion = bootstrap.TLSMinVersion1_2
	})
	if err := args.Complete(); err != nil {
		log.Fatal(err)
	}
	server, err := bootstrap.NewServer(args, func(server *bootstrap.Server) {
		// The field is what its own tests set.
		field := reflect.ValueOf(server).Elem().FieldByName("kubeClient")
		field = reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
		field.Set(reflect.ValueOf(kube.NewFakeClient()))
	})
	if err != nil {
		log.Fatal(err)
	}
	stop := make(chan struct{})
	if err := server.Start(stop); err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	close(stop)
	server.WaitUntilCompletion()
}
