package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) pkiCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "pki",
		Short:   "The cluster's own CA and node certificates",
		Example: "  baton pki init ./pki && baton pki issue ./pki --name n1 --host 127.0.0.1",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.pkiInitCmd(), p.pkiIssueCmd(), p.pkiRenewCmd(), p.pkiShowCmd())
	return cmd
}

func (p *program) pkiInitCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "init DIR",
		Short:   "Make the CA, the cluster key and the operator's certificate; never overwrites",
		Example: "  baton pki init ./pki",
		Args:    cobra.ExactArgs(1),
		RunE: p.run(func(_ context.Context, args []string) error {
			if err := baton.PKIInit(args[0]); err != nil {
				return localError{err}
			}
			return p.printCerts(args[0])
		}),
	}
}

func (p *program) pkiIssueCmd() *cobra.Command {
	var name string
	var hosts []string
	cmd := &cobra.Command{
		Use:     "issue DIR --name NODE --host H[,…]",
		Short:   "Issue a node's certificate",
		Example: "  baton pki issue ./pki --name n1 --host 10.0.0.1,n1.example.com",
		Args:    cobra.ExactArgs(1),
		RunE: p.run(func(_ context.Context, args []string) error {
			if name == "" {
				return usageError{fmt.Errorf("--name is needed"), "baton pki issue"}
			}
			if err := baton.PKIIssue(args[0], name, hosts); err != nil {
				return localError{err}
			}
			return p.printCerts(args[0])
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "the node's name")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "host names and IP addresses that the node is reached at")
	return cmd
}

func (p *program) pkiRenewCmd() *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use:   "renew DIR",
		Short: "Renew certificates before they end",
		Long: "Issues certificates anew where the authority's key is, for the same keys, names and hosts: only the\n" +
			".crt files change. Copy a node's over the former one on its host: it takes it up within a minute,\n" +
			"without a restart. The operator's, admin.crt, is renewed too.",
		Example: "  baton pki renew ./pki\n  baton pki renew ./pki --name n1,admin",
		Args:    cobra.ExactArgs(1),
		RunE: p.run(func(_ context.Context, args []string) error {
			if err := baton.PKIRenew(args[0], names...); err != nil {
				return localError{err}
			}
			return p.printCerts(args[0])
		}),
	}
	cmd.Flags().StringSliceVar(&names, "name", nil, "only these, admin among them (default: all)")
	return cmd
}

func (p *program) pkiShowCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "show [DIR]",
		Short:   "List the certificates of a directory",
		Example: "  baton pki show ./pki --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: p.run(func(_ context.Context, args []string) error {
			if len(args) == 1 {
				dir = args[0]
			}
			return p.printCerts(dir)
		}),
	}
	cmd.Flags().StringVar(&dir, "pki", defaultPKI, "the directory, where no DIR is given")
	return cmd
}

type certsJSON struct {
	Dir          string           `json:"dir"`
	Certificates []baton.CertInfo `json:"certificates"`
}

func (p *program) printCerts(dir string) error {
	certs, err := baton.PKIShow(dir)
	if err != nil {
		return localError{err}
	}
	p.print(certsJSON{dir, nonNil(certs)}, func(w io.Writer) {
		var rows [][]string
		for _, c := range certs {
			rows = append(rows, []string{c.Name, string(c.Role), strings.Join(c.Hosts, ","), c.NotAfter.Format(time.DateOnly), c.Fingerprint})
		}
		table(w, "NAME ROLE HOSTS NOT_AFTER FINGERPRINT", rows)
		for _, c := range certs {
			if c.Problem != "" {
				fmt.Fprintf(w, "%s cannot be used: %s\n", c.Name, c.Problem)
			}
		}
	})
	return nil
}

// nonNil makes an absent list an empty one, so that JSON has [] and not null.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
