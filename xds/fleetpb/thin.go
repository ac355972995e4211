// Package fleetpb is the contracts of the control plane, made of fleet.proto, and
// how a report leaves out what the one before it has said.
//
// Served by xds; nodeagent reports. Its one rule: what Whole returns for each report
// of a stream is what was given to Thin for it, if none is left out.
package fleetpb

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"millrace.dev/millrace/engine/enginepb"
)

// Fields of a report that are left out whole, and the field of an engine's status
// that is an increment already, by number.
const (
	fieldZone, fieldTimeout = 4, 5
	sameOfReport            = 1<<fieldZone | 1<<fieldTimeout
	sameOfTelemetry         = 1<<63 - 1
	sameOfEngine            = sameOfTelemetry &^ (1 << fieldCache)
	fieldCache              = 15
)

// Thin returns now without what is as in before, the stream's report before it; nil:
// it is the first one. Neither is changed, and the result has parts of now.
func Thin(before, now *NodeReport) *NodeReport {
	out := new(NodeReport)
	out.Same = thin(before.ProtoReflect(), now.ProtoReflect(), out.ProtoReflect(), sameOfReport)
	if now.GetTelemetry() != nil {
		out.Telemetry = new(Telemetry)
		out.SameTelemetry = thin(before.GetTelemetry().ProtoReflect(), now.GetTelemetry().ProtoReflect(), out.Telemetry.ProtoReflect(), sameOfTelemetry)
	}
	if now.GetEngine() != nil {
		out.Engine = new(enginepb.Status)
		out.SameEngine = thin(before.GetEngine().ProtoReflect(), now.GetEngine().ProtoReflect(), out.Engine.ProtoReflect(), sameOfEngine)
	}
	return out
}

// thin copies to out what differs, and returns the fields among those that may be
// left out that do not.
func thin(before, now, out protoreflect.Message, may uint64) (same uint64) {
	now.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		bit := uint64(1) << (f.Number() & 63)
		if may&bit != 0 && before.Has(f) && before.Get(f).Equal(v) {
			same |= bit
		} else {
			out.Set(f, v)
		}
		return true
	})
	return same
}

// Whole completes r by before, the stream's report before it, which is whole. Neither
// may be changed afterwards: r has parts of before.
func Whole(before, r *NodeReport) {
	whole(before.ProtoReflect(), r.ProtoReflect(), r.GetSame()&sameOfReport)
	if r.GetTelemetry() != nil {
		whole(before.GetTelemetry().ProtoReflect(), r.GetTelemetry().ProtoReflect(), r.GetSameTelemetry()&sameOfTelemetry)
	}
	if r.GetEngine() != nil {
		whole(before.GetEngine().ProtoReflect(), r.GetEngine().ProtoReflect(), r.GetSameEngine()&sameOfEngine)
	}
	r.Same, r.SameTelemetry, r.SameEngine = 0, 0, 0
}

func whole(before, r protoreflect.Message, same uint64) {
	if same == 0 {
		return
	}
	before.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if same&(1<<(f.Number()&63)) != 0 {
			r.Set(f, v)
		}
		return true
	})
}
