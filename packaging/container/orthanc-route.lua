-- Orthanc sends each CT series to the node once it is stable. In orthanc.json: "LuaScripts": ["/etc/orthanc/route.lua"]
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/DICOM_NODE/store', seriesId)
  end
end
