package region

import (
	"context"
	"encoding/json"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// Conflicts lists the open conflicts as this node has applied them, sorted and
// paged: those of the manual strategy, as the others settle by themselves.
func (n *Node) Conflicts(_ context.Context, f conflict.Filter) (list []conflict.Conflict, err error) {
	err = n.machine.View(func(m replication.Meta) error {
		list, err = conflict.Conflicts(m, f)
		return err
	})
	return list, err
}

// Resolve settles a conflict by a write through this region's log, which
// replaces all versions that the region has. conflict.ErrNoConflict where there
// is none, conflict.ErrVersionsChanged where the versions are not the ones that
// res.Expect names.
func (n *Node) Resolve(ctx context.Context, key conflict.Key, res conflict.Resolution) error {
	r := resolveRequest{Key: key.String(), Expect: res.Expect, Keep: res.Keep, Deleted: res.Deleted}
	if res.Value != nil {
		value, err := replication.AppendValue(nil, res.Value)
		if err != nil {
			return err
		}
		r.Value = json.RawMessage(value)
	}
	_, err := n.inner.ApplyBatch(ctx, []*replication.Command{{Type: cmdResolve, Data: jsonBody(&r)}})
	return fromAnswer(err)
}
