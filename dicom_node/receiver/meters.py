"""What the receiver counts for the metrics endpoint. Labels are words of our own: nothing that a peer or a header says.

With several processes the values lie in files that the `metrics` process adds up (prometheus_client's multiprocess
mode, in the folder that the supervisor names); without that folder they are counted and shown nowhere.
"""

from prometheus_client import Counter, Gauge

RECEIVERS = Gauge("dicom_node_receivers", "Receivers that listen.", multiprocess_mode="livesum", registry=None)
CONNECTIONS = Gauge("dicom_node_connections", "Open connections.", multiprocess_mode="livesum", registry=None)
ASSOCIATIONS = Gauge("dicom_node_associations", "Established associations.", multiprocess_mode="livesum", registry=None)
EVENTS = Counter("dicom_node_association_events", "What became of them.", ["event", "reason"], registry=None)
INSTANCES = Counter("dicom_node_instances", "By outcome, or status of the refusal.", ["outcome"], registry=None)
BYTES = Counter("dicom_node_received_bytes", "Bytes of data sets kept.", registry=None)
