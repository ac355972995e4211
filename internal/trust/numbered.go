package trust

import (
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// known is whether messages of a kind, by their full name, may have what Finite looks for,
// in themselves or in one inside. Contracts are few: it does not grow.
var known sync.Map // protoreflect.FullName to bool

// numbered reports whether a message of the kind may have what Finite looks for.
func numbered(d protoreflect.MessageDescriptor) bool {
	if v, ok := known.Load(d.FullName()); ok {
		return v.(bool)
	}
	has := reaches(d, map[protoreflect.FullName]bool{})
	known.Store(d.FullName(), has)
	return has
}

// reaches is numbered without what is known. A kind that is being visited adds nothing.
func reaches(d protoreflect.MessageDescriptor, visiting map[protoreflect.FullName]bool) bool {
	if name := d.FullName(); name == timestamp || name == duration {
		return true
	}
	if visiting[d.FullName()] {
		return false
	}
	visiting[d.FullName()] = true
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch f.Kind() {
		case protoreflect.FloatKind, protoreflect.DoubleKind:
			return true
		case protoreflect.MessageKind, protoreflect.GroupKind:
			if reaches(f.Message(), visiting) {
				return true
			}
		}
	}
	return false
}
