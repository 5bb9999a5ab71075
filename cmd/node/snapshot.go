package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

// snapshotTimeout bounds a backup: its size is the cluster's state.
const snapshotTimeout = 10 * time.Minute

func (p *program) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Back up the whole cluster's state, and make a new cluster of a backup",
		Example: "  baton snapshot save sessions.snap\n  baton snapshot inspect sessions.snap\n" +
			"  baton snapshot restore sessions.snap --name n1 --data ./n1 --mgmt-addr 127.0.0.1:7401 --epoch-floor 123",
		Args: cobra.ArbitraryArgs,
		RunE: needSubcommand,
	}
	cmd.AddCommand(p.snapshotSaveCmd(), p.snapshotInspectCmd(), p.snapshotRestoreCmd())
	return cmd
}

func (p *program) printSnapshot(info baton.SnapshotInfo) {
	p.print(info, func(w io.Writer) { describeSnapshot(w, info) })
}

func describeSnapshot(w io.Writer, i baton.SnapshotInfo) {
	fmt.Fprintf(w, "cluster      %s\nindex        %d\nepoch        %d\nsessions     %d, %d attached, %d migrating\nstate        %s of %s\nworkers      %s\nhash         %s\n",
		i.ClusterID, i.Index, i.Epoch, i.Sessions, i.Attached, i.Migrations, size(i.ByteBudget.Used), size(i.ByteBudget.Limit), strings.Join(i.Workers, ", "), i.StateHash)
	if i.Bytes > 0 {
		fmt.Fprintf(w, "file         %s\n", size(uint64(i.Bytes)))
	}
}

func (p *program) snapshotSaveCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Write a backup of the whole cluster's state",
		Long: "Everything that was acknowledged before is in it. It is written beside FILE, verified, and then\n" +
			"takes its name. Keep the epoch that is printed elsewhere: it is the floor for a restore, if nothing\n" +
			"knows of a later one.",
		Example: "  baton snapshot save sessions.snap",
		Args:    cobra.ExactArgs(1),
	}
	r.flags(cmd)
	if f := cmd.Flags().Lookup("timeout"); f != nil {
		r.timeout, f.DefValue = snapshotTimeout, snapshotTimeout.String()
	}
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			info, err := saveSnapshot(ctx, a, args[0])
			if err == nil {
				p.printSnapshot(info)
			}
			return err
		})
	})
	return cmd
}

// saveSnapshot leaves either a whole, synced and verified file, or none.
func saveSnapshot(ctx context.Context, a *baton.Admin, path string) (info baton.SnapshotInfo, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-*")
	if err != nil {
		return info, localError{err}
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	n, err := a.SaveSnapshot(ctx, f)
	if err != nil {
		return info, err
	}
	if _, err = f.Seek(0, io.SeekStart); err != nil {
		return info, localError{err}
	}
	if info, err = baton.InspectSnapshot(f); err != nil {
		return info, err
	}
	info.Bytes = n
	if err = f.Sync(); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return info, localError{err}
	}
	return info, nil
}

// openSnapshot opens a backup for fn.
func openSnapshot(path string, fn func(r io.Reader, bytes int64) error) error {
	f, err := os.Open(path)
	if err != nil {
		return localError{err}
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return localError{err}
	}
	return fn(f, st.Size())
}

func (p *program) snapshotInspectCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "inspect FILE",
		Short:   "Verify a backup and tell what it holds",
		Example: "  baton snapshot inspect sessions.snap --json",
		Args:    cobra.ExactArgs(1),
		RunE: p.run(func(_ context.Context, args []string) error {
			return openSnapshot(args[0], func(r io.Reader, bytes int64) error {
				info, err := baton.InspectSnapshot(r)
				if err != nil {
					return err
				}
				info.Bytes = bytes
				p.printSnapshot(info)
				return nil
			})
		}),
	}
}

// newClusterFlags are those of both ways to a new cluster.
func newClusterFlags(cmd *cobra.Command, c *baton.NewCluster) {
	f := cmd.Flags()
	f.StringVar(&c.Data, "data", "", "data directory of the new cluster's first node; no node may run on it")
	f.StringVar(&c.PKI, "pki", defaultPKI, "directory with the cluster's certificates")
	f.Uint64Var(&c.EpochFloor, "epoch-floor", 0, "the highest epoch that anything outside has seen (status and snapshot print it); the new cluster's are above it")
	_ = cmd.MarkFlagRequired("data")
}

func (p *program) snapshotRestoreCmd() *cobra.Command {
	var c baton.NewCluster
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a new cluster of a backup",
		Long: "Prepares the data directory of a new cluster's first node; start it with --join of its own address,\n" +
			"and further nodes with empty directories and --join of its address. The new cluster has an identity\n" +
			"and keys of its own: the former one, should it live, is a stranger to it, and clients of the two must\n" +
			"not be mixed. What was acknowledged after the backup is lost. Sessions are detached and get owners\n" +
			"six seconds after the start, when nothing of the former cluster can serve them any more.",
		Example: "  baton snapshot restore sessions.snap --name n1 --data ./n1 --mgmt-addr 127.0.0.1:7401 --epoch-floor 123",
		Args:    cobra.ExactArgs(1),
	}
	newClusterFlags(cmd, &c)
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", "", "the first node's name; PKI holds NAME.crt and NAME.key")
	f.StringVar(&c.MgmtAddr, "mgmt-addr", "", "HOST:PORT at which other nodes will reach its management port")
	for _, name := range []string{"name", "mgmt-addr", "epoch-floor"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.RunE = p.run(func(_ context.Context, args []string) error {
		return openSnapshot(args[0], func(r io.Reader, _ int64) error {
			info, err := baton.RestoreSnapshot(c, r)
			if err == nil {
				p.printSnapshot(info)
			}
			return err
		})
	})
	return cmd
}
