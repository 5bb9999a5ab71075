package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// member runs one member of etcd until it is killed or told to stop.
func member(ctx context.Context, args []string, stderr io.Writer) int {
	var name, dir, client, peer, cluster string
	f := flag.NewFlagSet(memberArg, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&name, "name", "", "the member's name")
	f.StringVar(&dir, "dir", "", "its data")
	f.StringVar(&client, "client", "", "URL for clients")
	f.StringVar(&peer, "peer", "", "URL for members")
	f.StringVar(&cluster, "cluster", "", "NAME=PEER-URL of all members")
	if err := f.Parse(args); err != nil {
		return exitUsage
	}
	if err := runMember(ctx, name, dir, client, peer, cluster); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	return exitOK
}

func runMember(ctx context.Context, name, dir, client, peer, cluster string) error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = name, dir, cluster
	cfg.LogLevel = "error"
	clientURL, err := url.Parse(client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	}
}
