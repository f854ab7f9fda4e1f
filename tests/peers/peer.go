// Transfers over Go's connections, and a relay that copies as Go copies between connections: by splice where
// it can. The protocol is in README.md.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

const period = 65521

func pattern(salt, size int) []byte {
	data := make([]byte, size)
	for i := range data {
		at := i % period
		data[i] = byte(at*7 + (at>>8)*13 + salt)
	}
	return data
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func same(a, b []byte, what string) {
	if !bytes.Equal(a, b) {
		check(fmt.Errorf("the bytes %s are not the ones that were sent (%d, %d)", what, len(a), len(b)))
	}
}

func serve(connection *net.TCPConn) {
	defer connection.Close()
	head := make([]byte, 16)
	_, err := io.ReadFull(connection, head)
	check(err)
	upward, downward := int(binary.BigEndian.Uint64(head)), int(binary.BigEndian.Uint64(head[8:]))
	sent := make(chan error)
	go func() {
		_, err := connection.Write(pattern(2, downward))
		sent <- err
	}()
	data, err := io.ReadAll(connection)
	check(err)
	if len(data) != upward {
		check(fmt.Errorf("%d bytes came in place of %d", len(data), upward))
	}
	check(<-sent)
	digest := sha256.Sum256(data)
	_, err = connection.Write(digest[:])
	check(err)
}

func dial(address string) *net.TCPConn {
	connection, err := net.Dial("tcp", address)
	check(err)
	return connection.(*net.TCPConn)
}

func transfer(address string, upward, downward int) {
	connection := dial(address)
	defer connection.Close()
	data := pattern(1, upward)
	sent := make(chan error)
	go func() {
		head := make([]byte, 16)
		binary.BigEndian.PutUint64(head, uint64(upward))
		binary.BigEndian.PutUint64(head[8:], uint64(downward))
		_, err := connection.Write(append(head, data...))
		if err == nil {
			err = connection.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(connection)
	check(err)
	check(<-sent)
	digest := sha256.Sum256(data)
	same(got, append(pattern(2, downward), digest[:]...), "from the server")
}

func relay(client *net.TCPConn, address string) {
	server := dial(address)
	done := make(chan bool)
	pass := func(to, from *net.TCPConn) {
		_, err := io.Copy(to, from)
		check(err)
		check(to.CloseWrite())
		done <- true
	}
	go pass(server, client)
	go pass(client, server)
	<-done
	<-done
	client.Close()
	server.Close()
}

func accept(port string, handle func(*net.TCPConn)) {
	listener, err := net.Listen("tcp4", ":"+port)
	check(err)
	fmt.Println("listening")
	for {
		connection, err := listener.Accept()
		check(err)
		go handle(connection.(*net.TCPConn))
	}
}

func main() {
	switch os.Args[1] {
	case "server":
		accept(os.Args[2], serve)
	case "relay":
		accept(os.Args[2], func(client *net.TCPConn) { relay(client, os.Args[3]) })
	default:
		address := net.JoinHostPort(os.Args[2], os.Args[3])
		for _, sizes := range os.Args[4:] {
			var upward, downward int
			_, err := fmt.Sscanf(strings.Replace(sizes, ":", " ", 1), "%d %d", &upward, &downward)
			check(err)
			transfer(address, upward, downward)
		}
		fmt.Println("ok", len(os.Args)-4)
	}
}
