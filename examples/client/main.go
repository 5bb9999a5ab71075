// Command client opens a session on a node of examples/server and votes.
//
//	client USER-ADDR PKI-DIR
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/baton-cluster/baton"
)

func main() {
	ctx := context.Background()
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: os.Args[1:2], PKI: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	session, err := client.Open(ctx, baton.OpenOptions{})
	if err != nil {
		log.Fatal(err)
	}
	pushed := make(chan string, 1)
	session.OnPush(func(p baton.Push) { pushed <- string(p.Payload) })
	reply, err := session.Call(ctx, "vote", []byte("ada"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("votes: %s; pushed: %s; served by %s in epoch %d\n", reply.Payload, <-pushed, reply.Node, reply.Epoch)
}
